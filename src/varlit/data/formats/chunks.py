"""Images in the chunks that `litdata.optimize` writes.

To make some (labels are int: others would be pickled, and pickles are refused):

    def item(sample: tuple[str, int]) -> dict[str, object]:
        path, label = sample
        return {"image": Path(path).read_bytes(), "label": int(label)}

    litdata.optimize(item, inputs=samples, output_dir="chunks/train", chunk_bytes="64MB")

and, for names of the classes, chunks/classes.txt with one on each line.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from varlit.data.decoding import max_pixels
from varlit.data.formats.chunk_index import (
    INDEX_FILE,
    NUM_THREADS,
    PIXEL_KINDS,
    read_index,
    read_layout,
    read_places,
)
from varlit.data.formats.class_list import numbered_classes, read_class_list
from varlit.data.formats.encoded import Encoded, EncodedImages
from varlit.data.progress import Progress
from varlit.data.whole_files import read_json
from varlit.errors import UserError
from varlit.places import CACHE_VARIABLE, cache_folder

SCHEME = "litdata:"
CLASSES_FILE = "classes.txt"
SPLITS = ("train", "val")


@dataclass(frozen=True, eq=False)
class ChunkImages:
    """The items of a folder of chunks, read by their place in the files and without litdata.

    Attributes:
        folder: The folder of index.json.
        class_names: Names in the order of the labels.
        names: (N,) fixed-width bytes, chunk and number in it.
        labels: (N,) int64.
        files: (C,) fixed-width bytes, names of the chunks.
        chunks: (N,) int32, the chunk of a row.
        offsets: (N,) int64, first byte of the image in it.
        sizes: (N,) int64, in bytes.
        kind: What litdata calls the kind of the images.
    """

    folder: Path
    class_names: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    files: np.ndarray
    chunks: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    kind: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, row: int) -> Encoded:
        """Return the bytes of a row's image file, or its pixels where those were stored."""
        file = self.folder / self.files[self.chunks[row]].decode()
        # Opened each time: a handle that lives on would be shared by forked workers.
        with file.open("rb", buffering=0) as chunk:
            chunk.seek(int(self.offsets[row]))
            content = chunk.read(int(self.sizes[row]))
        if len(content) != self.sizes[row]:
            raise OSError(f"{file.name} is cut off")
        if self.kind in PIXEL_KINDS:
            return _pixels(content, self.kind)
        return content

    def where(self, row: int) -> str:
        """Return chunk and number of a row."""
        return f"{self.folder}/{self.names[row].decode()}"

    def take(self, rows: np.ndarray) -> ChunkImages:
        """Return the split with only some of its rows."""
        fields = ("names", "labels", "chunks", "offsets", "sizes")
        return replace(self, **{name: getattr(self, name)[rows] for name in fields})


def is_chunks(root: str) -> bool:
    """Whether `root` is a folder of chunks, or one with train/ of such, or `litdata:...`."""
    if root.startswith(SCHEME):
        return True
    return any(_has_index(Path(root, folder)) for folder in ("", "train"))


def open_chunks(root: str, val_root: str = "") -> dict[str, EncodedImages]:
    """Open chunks: a folder with index.json, or with train/ and val/ that have one.

    The labels are read from all chunks at the first start and remembered in $VARLIT_CACHE/chunks
    (by default ~/.cache/varlit/chunks). `litdata:s3://bucket/folder` (or gs://, azure://, r2://,
    hf://) fetches all chunks into that folder first, by litdata and with its credentials, for order
    and labels need them all; to start at once on a remote set, stream tar shards instead.

    Args:
        root: The folder, or litdata: with an address.
        val_root: The same for validation, where it lies elsewhere.

    Returns:
        "train" and, if there is one, "val".

    Raises:
        UserError: If chunks are missing, damaged, or hold no images with int labels.
    """
    folder = _local(root)
    has_train = not _has_index(folder) and (folder / "train").is_dir()
    train = _open_folder(folder / "train" if has_train else folder)
    if val_root:
        val_folder = _local(val_root)
        if not _has_index(val_folder):
            inside = (val_folder / name for name in SPLITS[::-1])
            val_folder = next(filter(_has_index, inside), val_folder)
    elif has_train and _has_index(folder / "val"):
        val_folder = folder / "val"
    else:
        return {"train": train}
    return {"train": train, "val": _open_folder(val_folder, train.class_names)}


def _has_index(folder: Path) -> bool:
    try:
        return "chunks" in read_json(folder / INDEX_FILE)
    except UserError:
        return False


def _open_folder(folder: Path, class_names: tuple[str, ...] | None = None) -> ChunkImages:
    content = read_index(folder)
    places = read_places(folder, content)
    if not len(places.labels):
        raise UserError(f"the chunks in '{folder}' hold no items: expected images.")
    if places.labels.min() < 0:
        raise UserError(f"the chunks in '{folder}' have negative labels: expected 0, 1, 2, ...")
    known = class_names or _class_names(folder, int(places.labels.max()) + 1)
    if places.labels.max() >= len(known):
        raise UserError(
            f"the chunks in '{folder}' have the label {places.labels.max()}, but there are "
            f"{len(known)} classes, from the training set or {CLASSES_FILE}: both need the same."
        )
    files = [chunk["filename"] for chunk in content["chunks"]]
    names = [
        f"{chunk['filename']}:{number:06d}".encode()
        for chunk in content["chunks"]
        for number in range(chunk["chunk_size"])
    ]
    return ChunkImages(
        folder=folder,
        class_names=known,
        names=np.array(names, dtype="S"),
        labels=places.labels,
        files=np.array([name.encode() for name in files]),
        chunks=places.chunks,
        offsets=places.offsets,
        sizes=places.sizes,
        kind=read_layout(folder, content["config"]).kind,
    )


def _class_names(folder: Path, num_labels: int) -> tuple[str, ...]:
    """Read classes.txt, here or one folder up; numbers where there is none."""
    for place in (folder, folder.parent):
        if (place / CLASSES_FILE).is_file():
            return read_class_list(place / CLASSES_FILE)
    return numbered_classes(num_labels, f"the chunks in '{folder}'", CLASSES_FILE)


def _pixels(content: bytes, kind: str) -> Image.Image:
    """Read pixels as litdata stores them: 32-bit words on their shape, then the pixels.

    Raises:
        OSError: If they are not an image.
    """
    word = ">u4" if kind == "tensor" else "<u4"
    try:
        if kind == "pil":
            width, height, length = np.frombuffer(content, word, 3).tolist()
            mode = content[12 : 12 + length].decode("ascii")
            _check_claim(width, height, mode, len(content))
            return Image.frombytes(mode, (width, height), content[12 + length :])
        num_sides = int(np.frombuffer(content, word, 2)[1])
        shape = np.frombuffer(content, word, num_sides, 8).tolist()
        pixels = np.frombuffer(content, np.uint8, offset=8 + 4 * num_sides).reshape(shape)
        if num_sides == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        gray = pixels.shape[2:] == (1,)
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if gray else pixels))
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"its pixels cannot be read ({error}); expected 8-bit ones") from error


def _check_claim(width: int, height: int, mode: str, num_bytes: int) -> None:
    """Refuse sides that the bytes do not fill, before Pillow makes room for them."""
    row_bytes = (width + 7) // 8 if mode == "1" else width * Image.getmodebands(mode)
    if row_bytes * height > num_bytes or width * height > max_pixels():
        raise ValueError(f"{width}x{height} px in {num_bytes:,} bytes")


def _local(root: str) -> Path:
    """Return the folder of a root; what is remote is fetched first, and kept until removed."""
    address = root.removeprefix(SCHEME)
    if "://" not in address and not address.startswith("local:"):
        return Path(address).expanduser()
    home = cache_folder("chunks")
    if home is None:
        raise UserError(
            f"'{root}' has to be copied to a folder, but ${CACHE_VARIABLE} is empty: set it to one."
        )
    from filelock import FileLock

    folder = home / hashlib.sha256(address.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder '{folder}': {error.strerror}. Set ${CACHE_VARIABLE} to one "
            "that you may write to."
        ) from error
    # litdata's own locks let a second process go on without the file.
    with FileLock(f"{folder}.lock"):
        parts = [part for part in ("", *SPLITS) if _fetch_index(address, folder, part)]
        if parts in ([], ["val"]):
            raise UserError(
                f"no {INDEX_FILE} at {address} nor at {address}/train, or no access: check the "
                "address and your credentials."
            )
        for part in parts:
            _fetch_chunks("/".join(filter(None, (address, part))), folder / part)
    return folder


def _fetch_index(address: str, folder: Path, part: str) -> bool:
    """Copy an index.json, if it is there."""
    if _has_index(folder / part):
        return True
    if part and _has_index(folder):
        return False
    (folder / part).mkdir(exist_ok=True)
    source = "/".join(filter(None, (address, part, INDEX_FILE)))
    downloader = _downloader(address, folder, [])
    try:
        downloader.download_file(source, str(folder / part / INDEX_FILE))
    except Exception:  # every store has errors of its own
        return False
    return _has_index(folder / part)


def _fetch_chunks(address: str, folder: Path) -> None:
    """Copy the chunks that are not yet here."""
    content = read_index(folder)
    read_layout(folder, content["config"])  # before gigabytes of what cannot be used
    files = [folder / chunk["filename"] for chunk in content["chunks"]]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    downloader = _downloader(address, folder, content["chunks"])
    progress = Progress(f"fetching {address}", len(files), len(files) - len(missing))
    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for _ in pool.map(downloader.download_chunk_from_index, missing):
                progress.add()
    except Exception as error:  # every store has errors of its own
        raise UserError(
            f"cannot fetch a chunk of {address} ({error}): check the network and the space in "
            f"'{folder}', then run the same command again; finished chunks are kept."
        ) from error
    progress.end()


def _downloader(address: str, folder: Path, chunks: list[dict[str, Any]]) -> Any:
    try:
        from litdata.streaming.downloader import get_downloader

        return get_downloader(address, str(folder), chunks)
    except ImportError as error:
        raise UserError(
            f"'{SCHEME}{address}' needs the package `litdata` ({error}): "
            "pip install 'varlit[formats]'."
        ) from error
