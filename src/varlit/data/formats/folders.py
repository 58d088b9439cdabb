"""A tree of class folders: root/<class>/.../<image>, hidden and other files ignored."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.folder_index import list_names
from varlit.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
LAYOUT = "expected <folder>/<class>/<image>, one sub-folder for each class"


@dataclass(frozen=True, eq=False)
class ClassFolders:
    """The images of a class-folder tree, sorted by class and name.

    Attributes:
        root: The folder that holds the class folders.
        class_names: Sorted folder names; the label of a class is its place here.
        names: (N,) fixed-width bytes, paths relative to root. One array and not a list of strings,
            or every worker process would copy it by merely counting references.
        labels: (N,) int64.
    """

    root: Path
    class_names: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, row: int) -> Path:
        """Return the file of a row."""
        return self.root / os.fsdecode(self.names[row].item())

    def where(self, row: int) -> str:
        """Return the path of a row."""
        return str(self.read(row))

    def take(self, rows: np.ndarray) -> ClassFolders:
        """Return the tree with only some of its images."""
        return ClassFolders(self.root, self.class_names, self.names[rows], self.labels[rows])


def open_folders(root: str, val_root: str = "") -> dict[str, EncodedImages]:
    """Open root/train and root/val, or the class folders of root alone.

    Args:
        root: The folder.
        val_root: Class folders to validate on, where they lie elsewhere.

    Returns:
        "train" and, if there is one, "val".

    Raises:
        UserError: As `list_class_folders`, or if there is a val folder without a train folder.
    """
    folder = Path(root).expanduser()
    has_train = (folder / "train").is_dir()
    if (folder / "val").is_dir() and not has_train:
        raise UserError(f"'{folder}' has a val folder but no train folder beside it: add one.")
    train = list_class_folders(folder / "train" if has_train else folder)
    val_folder = Path(val_root).expanduser() if val_root else folder / "val"
    if not val_root and not (has_train and val_folder.is_dir()):
        return {"train": train}
    return {"train": train, "val": list_class_folders(val_folder, train.class_names)}


def has_class_folders(root: str) -> bool:
    """Whether an image lies in a sub-folder of `root`, or of its train folder."""
    for folder in (Path(root, "train"), Path(root)):
        with contextlib.suppress(OSError):
            inside = [entry.path for entry in _entries(folder) if entry.is_dir()]
            if any(_is_image(entry.name) for path in inside for entry in _entries(path)):
                return True
    return False


def list_class_folders(root: Path, class_names: tuple[str, ...] | None = None) -> ClassFolders:
    """List the images below `root`, or recall them where nothing has changed since the last time.

    Args:
        root: Folder with one sub-folder for each class.
        class_names: Classes of the training set, where `root` is a validation set of its own.

    Raises:
        UserError: If the folder is missing, unreadable, without class sub-folders, without
            images, or has a class that `class_names` lacks.
    """
    found = _class_folder_names(root)
    known = class_names if class_names is not None else tuple(found)
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise UserError(
            f"'{root}' has {len(unknown)} class folder(s) that the training set lacks, such as "
            f"'{unknown[0]}': both sets need the same class folders."
        )
    listed = list_names(root, found, IMAGE_SUFFIXES)
    counts = [len(names) for names in listed]
    if not any(counts):
        raise UserError(
            f"no image in the {len(found)} class folders of '{root}': expected files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    if not all(counts):
        empty = [folder for folder, count in zip(found, counts, strict=True) if not count]
        warnings.warn(
            f"'{root}' has {len(empty)} class folder(s) without an image, such as '{empty[0]}'.",
            stacklevel=2,
        )
    label_of = {name: label for label, name in enumerate(known)}
    labels = np.array([label_of[folder] for folder in found], dtype=np.int64)
    return ClassFolders(root, known, np.concatenate(listed), np.repeat(labels, counts))


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _class_folder_names(root: Path) -> list[str]:
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise UserError(f"the image folder '{root}' {kind}: {LAYOUT}.")
    try:
        entries = list(_entries(root))
    except PermissionError as error:
        raise UserError(f"no permission to read '{root}': {error.strerror}.") from error
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    if folders:
        return folders
    num_images = sum(_is_image(entry.name) for entry in entries)
    if num_images:
        raise UserError(
            f"'{root}' has {num_images} images but no class sub-folders: {LAYOUT}. "
            f"With a single class, move them to '{root / 'all'}'."
        )
    content = f"has {len(entries):,} file(s) but no class sub-folders" if entries else "is empty"
    raise UserError(f"'{root}' {content}: {LAYOUT}.")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
