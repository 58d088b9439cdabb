"""What every format of images hands out: the rows of a split, still encoded, in random access."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from PIL import Image

Encoded = Path | bytes | Image.Image
"""One image: a file, the bytes of a file, or pixels where a format keeps no files."""
CHUNK = 65_536


class EncodedImages(Protocol):
    """The images of one split. Rows never move: a row is what order, resume and caches go by.

    An object is sent to worker processes: it holds names in arrays and not in lists (counting
    references would copy a list into every worker), and opens its files after that.
    """

    @property
    def place(self) -> str:
        """Where the images come from, as the user wrote it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""

    @property
    def names(self) -> np.ndarray:
        """(N,) fixed-width bytes, unique, the same on every machine: rows are held out by them."""

    def __len__(self) -> int:
        """Return N."""

    def read(self, row: int) -> Encoded:
        """Return the image of a row.

        Raises:
            OSError: If it cannot be read; the run goes on without it.
        """

    def where(self, row: int) -> str:
        """Return where a person finds the image of a row."""

    def take(self, rows: np.ndarray) -> Self:
        """Return the split with only some of its rows."""


def digest(images: EncodedImages) -> str:
    """Return a sha256 of names and labels, which changes when an image comes or goes."""
    content = hashlib.sha256("\n".join(images.class_names).encode("utf-8", "surrogateescape"))
    for start in range(0, len(images), CHUNK):  # as lists, a million names are 100 MB
        part = images.names[start : start + CHUNK].tolist()
        content.update(b"\n" * (start > 0) + b"\n".join(part))
    content.update(images.labels.astype("<i8").tobytes())
    return content.hexdigest()


def hold_out_rows(names: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose the rows to train on and those to validate on, by the names alone.

    Args:
        names: (N,) bytes, N at least 2.
        fraction: Part to hold out; at least one row goes to each side.

    Returns:
        Two ascending (n,) int64.
    """
    hashed = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    keys = np.fromiter((int.from_bytes(key) for key in hashed), np.uint64, len(names))
    num_held_out = min(max(1, round(fraction * len(keys))), len(keys) - 1)
    ranked = np.argsort(keys, kind="stable")
    held_out = np.zeros(len(keys), dtype=bool)
    held_out[ranked[:num_held_out]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
