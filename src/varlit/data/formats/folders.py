"""Listing a tree of class folders: root/<class>/.../<image>, hidden and other files ignored."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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

    def path(self, row: int) -> Path:
        """Return the full path of an image."""
        return self.root / os.fsdecode(self.names[row].item())

    def digest(self) -> str:
        """Return a sha256 of names and labels, which changes when a file comes or goes."""
        content = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        content.update(b"\n".join(self.names.tolist()))
        content.update(self.labels.astype("<i8").tobytes())
        return content.hexdigest()

    def take(self, rows: np.ndarray) -> ClassFolders:
        """Return the tree with only some of its images."""
        return ClassFolders(self.root, self.class_names, self.names[rows], self.labels[rows])


def list_class_folders(root: Path, class_names: tuple[str, ...] | None = None) -> ClassFolders:
    """List the images below `root`.

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
    label_of = {name: label for label, name in enumerate(known)}
    names: list[bytes] = []
    labels: list[int] = []
    empty: list[str] = []
    for folder in found:
        images = _images_below(root, folder)
        names += images
        labels += [label_of[folder]] * len(images)
        if not images:
            empty.append(folder)
    if not names:
        raise UserError(
            f"no image in the {len(found)} class folders of '{root}': expected files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    if empty:
        warnings.warn(
            f"'{root}' has {len(empty)} class folder(s) without an image, such as '{empty[0]}'.",
            stacklevel=2,
        )
    return ClassFolders(root, known, np.array(names), np.array(labels, dtype=np.int64))


def hold_out(tree: ClassFolders, fraction: float) -> tuple[ClassFolders, ClassFolders]:
    """Split off a validation set that depends on the file names alone.

    Returns:
        The training images and the held-out ones, at least one image each.

    Raises:
        UserError: If there is only one image.
    """
    if len(tree) < 2:
        raise UserError(
            f"'{tree.root}' has one image, which leaves none to validate on: add images, "
            "or set val_fraction to 0."
        )
    keys = [hashlib.blake2b(name, digest_size=8).digest() for name in tree.names.tolist()]
    num_held_out = min(max(1, round(fraction * len(tree))), len(tree) - 1)
    ranked = np.argsort(np.array(keys), kind="stable")
    held_out = np.zeros(len(tree), dtype=bool)
    held_out[ranked[:num_held_out]] = True
    return tree.take(np.flatnonzero(~held_out)), tree.take(np.flatnonzero(held_out))


def _class_folder_names(root: Path) -> list[str]:
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise UserError(f"the image folder '{root}' {kind}: {LAYOUT}.")
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
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
    raise UserError(f"'{root}' is empty: {LAYOUT}.")


def _images_below(root: Path, folder: str) -> list[bytes]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list '{error.filename}': {error.strerror}.") from error

    images = []
    for parent, folders, files in os.walk(root / folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(parent, root)
        images += [os.fsencode(os.path.join(inside, name)) for name in files if _is_image(name)]
    return sorted(images)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
