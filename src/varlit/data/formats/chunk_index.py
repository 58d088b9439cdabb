"""Where the images lie in a folder of litdata's chunks, and their labels: read once, remembered.

litdata's own random access would decode up to 256 neighbours of every item, or read its whole chunk
(on chunks of 16 MB, 0.7 ms and 2.6 ms for an image, against 0.008 ms for reading its bytes alone).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from varlit.arrays import read_arrays
from varlit.data.formats.chunk_files import Layout, locate_items
from varlit.data.progress import Progress
from varlit.data.whole_files import read_json, write_bytes
from varlit.errors import UserError
from varlit.places import cache_folder

INDEX_FILE = "index.json"
VERSION = 1
NUM_THREADS = 16
IMAGE_KEYS = ("image", "img", "jpg", "jpeg", "png")
LABEL_KEYS = ("label", "labels", "class", "cls", "target")
FILE_KINDS = ("bytes", "jpeg", "image", "file", "tifffile", "tiff")
"""What litdata calls values that are the bytes of an image file."""
PIXEL_KINDS = ("pil", "numpy", "tensor")
REMEDY = 'optimize them again with fn returning {"image": file.read_bytes(), "label": int(label)}'


@dataclass(frozen=True, eq=False)
class Places:
    """Where the images of a folder of chunks lie.

    Attributes:
        chunks: (N,) int32, place of the chunk in index.json.
        offsets: (N,) int64, first byte of the image in it.
        sizes: (N,) int64, in bytes.
        labels: (N,) int64.
    """

    chunks: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


def read_layout(folder: Path, config: dict[str, Any]) -> Layout:
    """Find image and label in the items that index.json describes.

    Values are told apart by their key, else by being the only ones of their kind.

    Raises:
        UserError: If the chunks are compressed, encrypted or of another kind, or hold no such
            values. Pickled ones are refused: reading them would run code of whoever wrote them.
    """
    for setting in ("compression", "ipc_compression", "encryption"):
        if config.get(setting):
            raise UserError(
                f"the chunks in '{folder}' have {setting} {config[setting]}: expected none, which "
                f"gains nothing with images. Please {REMEDY} and without {setting}."
            )
    try:
        kinds = [str(kind).split(":")[0] for kind in config.get("data_format") or ()]
        keys = _keys(config.get("data_spec"))
    except (ValueError, LookupError, TypeError, RecursionError):
        keys, kinds = [], []
    if (
        config.get("item_loader") not in (None, "PyTreeLoader")
        or not kinds
        or len(keys) != len(kinds)
    ):
        raise UserError(f"the chunks in '{folder}' hold no items with an image: please {REMEDY}.")
    image = _choose(folder, keys, kinds, IMAGE_KEYS, (*FILE_KINDS, *PIXEL_KINDS))
    label = _choose(folder, keys, kinds, LABEL_KEYS, ("int",))
    return Layout(tuple(keys), image, label, kinds[image])


def read_places(folder: Path, content: dict[str, Any]) -> Places:
    """Find all images and labels, or recall them where no chunk has changed.

    Args:
        folder: The folder of index.json.
        content: What is in index.json.

    Raises:
        UserError: If a chunk is missing or damaged.
    """
    layout = read_layout(folder, content["config"])
    files = [folder / chunk["filename"] for chunk in content["chunks"]]
    counts = [int(chunk["chunk_size"]) for chunk in content["chunks"]]
    cached = _cache_file(folder, content, files)
    stored = _recall(cached, sum(counts)) if cached is not None else None
    if stored is None:
        stored = _locate_all(folder, files, counts, layout)
        if cached is not None:
            _remember(cached, stored)
    chunks = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    return Places(chunks, stored[0], stored[1], stored[2])


def read_index(folder: Path) -> dict[str, Any]:
    """Read index.json.

    Raises:
        UserError: If it cannot be read or is not litdata's.
    """
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"no litdata chunks in '{folder}': expected {INDEX_FILE} and the chunks that it names."
        )
    content = read_json(folder / INDEX_FILE)
    if not isinstance(content.get("chunks"), list) or not isinstance(content.get("config"), dict):
        raise UserError(f"'{folder / INDEX_FILE}' is not an index of litdata: expected its chunks.")
    for chunk in content["chunks"]:
        if not _is_entry(chunk):
            raise UserError(f"'{folder / INDEX_FILE}' has the entry {chunk}: expected a file here.")
    return content


def _is_entry(chunk: Any) -> bool:
    """Whether an entry of index.json is one, of a file in its own folder."""
    if not isinstance(chunk, dict):
        return False
    name, count = chunk.get("filename"), chunk.get("chunk_size")
    return isinstance(name, str) and os.sep not in name and type(count) is int and count >= 0


def _keys(spec: str | None) -> list[str]:
    """Names of the values of an item, in their order; their numbers in a tuple."""
    if not spec:
        return []

    def walk(node: dict[str, Any], name: str) -> list[str]:
        if node["type"] is None:
            return [name]
        context = json.loads(node["context"]) if node["context"] else None
        children = node["children_spec"]
        inside = context if isinstance(context, list) else range(len(children))
        return [
            key
            for part, child in zip(inside, children, strict=True)
            for key in walk(child, str(part))
        ]

    return walk(json.loads(spec)[1], "0")


def _choose(
    folder: Path, keys: list[str], kinds: list[str], wanted: Sequence[str], known: Sequence[str]
) -> int:
    """Prefer a value with a wanted key; else the only one of a known kind."""
    named = [keys.index(key) for key in wanted if key in keys]
    fitting = [place for place, kind in enumerate(kinds) if kind in known]
    if named and named[0] in fitting:
        return named[0]
    if not named and len(fitting) == 1:
        return fitting[0]
    items = ", ".join(f"{key}: {kind}" for key, kind in zip(keys, kinds, strict=True))
    pickled = " Pickles are not read, for they can run code." if "pickle" in kinds else ""
    raise UserError(
        f"the items in '{folder}' hold {items}: expected one {wanted[0]} ({', '.join(known)})."
        f"{pickled} Please {REMEDY}."
    )


def _locate_all(
    folder: Path, files: Sequence[Path], counts: Sequence[int], layout: Layout
) -> np.ndarray:
    """Read offsets, sizes and labels from every chunk. Returns (3, N) int64."""

    def locate(file: Path, count: int) -> np.ndarray:
        try:
            return locate_items(np.memmap(file, mode="r"), count, layout)
        except ImportError as error:
            raise UserError(
                f"the chunk '{file}' needs the package `pyarrow`: pip install 'varlit[formats]'."
            ) from error
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"the chunk '{file}' is missing or damaged ({error}): copy it again, or {REMEDY}."
            ) from error

    progress = Progress(f"reading labels of '{folder}'", len(files))
    found = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for part in pool.map(locate, files, counts):
            found.append(part)
            progress.add()
    progress.end()
    return np.concatenate(found, axis=1) if found else np.zeros((3, 0), dtype=np.int64)


def _cache_file(folder: Path, content: dict[str, Any], files: Sequence[Path]) -> Path | None:
    """Where the places of these very chunks are remembered."""
    home = cache_folder("chunks")
    if home is None:
        return None
    try:
        stats = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except (OSError, ValueError):
        return None  # which chunk is missing is said when it is read
    key = json.dumps([VERSION, os.path.realpath(folder), content, stats], sort_keys=True)
    return home / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _recall(file: Path, count: int) -> np.ndarray | None:
    try:
        places = read_arrays(file, "places")["places"]
    except (OSError, ValueError, KeyError):
        return None
    return places if places.shape == (3, count) and places.dtype == np.int64 else None


def _remember(file: Path, places: np.ndarray) -> None:
    """Write the places down; without room or permission the next start reads them anew."""
    content = io.BytesIO()
    np.savez(content, places=places)
    with contextlib.suppress(OSError, UserError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content.getvalue())
