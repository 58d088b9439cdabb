"""Real photographs in one flag: CIFAR-10, Imagenette and Oxford Flowers as torchvision knows them.

They are downloaded once into $VARLIT_DATA/<name>, by default data/<name>. An archive that was put
there by hand is used as well.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from varlit.data.formats.cifar_batches import read_batch
from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.folders import ClassFolders, open_folders
from varlit.data.formats.unpacking import unpack_tar
from varlit.errors import UserError

ROOT_VARIABLE = "VARLIT_DATA"
DEFAULT_ROOT = "data"
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
        url: Where it is.
        md5: As torchvision knows it.
        holds: Folder in the archive; "" for a plain file.
    """

    url: str
    md5: str
    holds: str = ""

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[1]


CIFAR10 = Download(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py",
)
IMAGENETTE = Download(
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
    "fe2fc210e6bb7c5664d602c3cd71e612",
    "imagenette2",
)
FLOWERS = (
    Download(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
        "52808999861908f626f3c1f4e79d11fa",
        "jpg",
    ),
    Download(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
        "e0620be6f572b9609742df49c70aed4d",
    ),
    Download(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat",
        "a5357ecc9cb78c4bef273ce3793fc85c",
    ),
)


@dataclass(frozen=True, eq=False)
class PixelImages:
    """Images that are kept as pixels in memory.

    Attributes:
        place: What the user wrote, and the split.
        class_names: Names in the order of the labels.
        names: (N,) fixed-width bytes, the file names that the authors gave.
        labels: (N,) int64.
        pixels: (N, h, w, 3) uint8.
    """

    place: str
    class_names: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> Image.Image:
        """Return the image of a row."""
        return Image.fromarray(self.pixels[row])

    def where(self, row: int) -> str:
        """Return the name of a row."""
        return f"{self.place}, {self.names[row].decode()}"

    def take(self, rows: np.ndarray) -> PixelImages:
        """Return the split with only some of its rows."""
        fields = ("names", "labels", "pixels")
        return replace(self, **{name: getattr(self, name)[rows] for name in fields})


def open_torchvision(name: str) -> dict[str, EncodedImages]:
    """Open a data set that downloads itself.

    - cifar10: 50,000 images of 32 px to train on, the 10,000 of the test set to validate.
    - imagenette: ten classes of ImageNet at full size, 9,469 and 3,925 images.
    - flowers102: the 1,020 images of the official validation set, ten of each class, to validate.
      All others, 7,169, to train on: the official training set has just another ten of each, for
      it was made for classifiers that learn from few examples.

    Args:
        name: One of those.

    Returns:
        "train" and "val".

    Raises:
        UserError: If there is no such set, or no network; says which file to put where.
    """
    openers: dict[str, Callable[[Path], dict[str, EncodedImages]]] = {
        "cifar10": _open_cifar10,
        "imagenette": _open_imagenette,
        "flowers102": _open_flowers102,
    }
    if name not in openers:
        raise UserError(
            f"data.root is 'torchvision:{name}': expected one of "
            f"{', '.join(f'torchvision:{known}' for known in openers)}."
        )
    root = Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser() / name
    return openers[name](root)


def _open_cifar10(root: Path) -> dict[str, EncodedImages]:
    from torchvision.datasets import CIFAR10 as Known  # the checksum of each file

    folder = _fetch(CIFAR10, root)

    def split(name: str, files: list[list[str]]) -> PixelImages:
        batches = [read_batch(folder / file, md5) for file, md5 in files]
        return PixelImages(
            place=f"torchvision:cifar10 {name}",
            class_names=CIFAR10_CLASSES,
            names=np.concatenate([batch.names for batch in batches]),
            labels=np.concatenate([batch.labels for batch in batches]),
            pixels=np.concatenate([batch.pixels for batch in batches]),
        )

    return {"train": split("train", Known.train_list), "val": split("test", Known.test_list)}


def _open_imagenette(root: Path) -> dict[str, EncodedImages]:
    return open_folders(str(_fetch(IMAGENETTE, root)))


def _open_flowers102(root: Path) -> dict[str, EncodedImages]:
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    images, labels_file, splits_file = (_fetch(download, folder) for download in FLOWERS)
    labels = loadmat(labels_file)["labels"].ravel().astype(np.int64) - 1
    splits = loadmat(splits_file)
    names = tuple(getattr(Flowers102, "classes", ())) or tuple(str(n + 1) for n in range(102))

    def split(*parts: str) -> ClassFolders:
        numbers = np.sort(np.concatenate([splits[part].ravel() for part in parts]).astype(np.int64))
        files = np.array([b"image_%05d.jpg" % number for number in numbers])
        return ClassFolders(images, names, files, labels[numbers - 1])

    return {"train": split("trnid", "tstid"), "val": split("valid")}


def _fetch(download: Download, root: Path) -> Path:
    """Return the file of a download, or the folder that it holds; whole, or not at all."""
    from torchvision.datasets.utils import check_integrity

    place = root / (download.holds or download.file)
    if place.exists():
        return place
    with _alone(root):
        archive = root / download.file
        if not place.exists() and not check_integrity(archive, download.md5):
            _download(download, root)
        if not place.exists():
            _unpack(archive, root, download.holds)
    return place


def _download(download: Download, root: Path) -> None:
    from torchvision.datasets.utils import download_url

    archive = root / download.file
    part = root / f".{uuid.uuid4().hex}"
    try:
        download_url(download.url, str(part), md5=download.md5)
        os.replace(part / download.file, archive)
    except (
        OSError,
        http.client.HTTPException,
        RuntimeError,
    ) as error:  # RuntimeError for another checksum
        found = f"'{archive}' is damaged, and" if archive.is_file() else f"no '{archive}', and"
        raise UserError(
            f"{found} it cannot be downloaded ({error}). Where there is a network, get "
            f"{download.url} (md5 {download.md5}), and put it into '{root.resolve()}'."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack beside, then rename: a broken-off start leaves nothing that looks complete."""
    beside = root / f".{uuid.uuid4().hex}"
    try:
        unpack_tar(archive, beside)
        os.replace(beside / folder, root / folder)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"cannot unpack '{archive}' ({error}): free some space in '{root}', or remove the file "
            "and start again."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Let one process at a time download: every process of a run opens the data."""
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to '{root}' ({error.strerror}): set {ROOT_VARIABLE} to a folder that "
            "you may write to."
        ) from error
    try:
        yield
    finally:
        lock.release()
