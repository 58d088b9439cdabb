"""What the images of a split are, byte by byte: a hash of each, whatever format holds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from varlit.data.formats.chunks import ChunkImages
from varlit.data.formats.encoded import Encoded, EncodedImages, digest
from varlit.data.formats.folders import ClassFolders
from varlit.data.formats.parquet import ParquetImages
from varlit.data.formats.tars import TarImages

DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class ContentDigests:
    """Hashes of some images.

    Attributes:
        rows: (n, 32) uint8, the sha256 of each one's bytes; zeros where it cannot be read.
        is_stamped: Whether `stamp` changes when one of them does.
    """

    rows: np.ndarray
    is_stamped: bool


def hash_images(
    images: EncodedImages, rows: Sequence[int], tell: Callable[[], None] | None = None
) -> ContentDigests:
    """Hash images: the bytes of their files, or mode, size and pixels where there are none.

    Args:
        images: The split.
        rows: Which.
        tell: Called after each.
    """
    found = np.zeros((len(rows), DIGEST_BYTES), dtype=np.uint8)
    is_stamped = not isinstance(images, ParquetImages) or bool(images.table.cache_files)
    for place, row in enumerate(rows):
        try:
            encoded = images.read(row)
            found[place] = np.frombuffer(_digest(encoded), np.uint8)
        except OSError:
            encoded, is_stamped = b"", False  # it may be there the next time
        # A table of paths: the files of the table say nothing of those.
        if isinstance(encoded, Path) and not isinstance(images, ClassFolders):
            is_stamped = False
        if tell is not None:
            tell()
    return ContentDigests(found, is_stamped)


def stamp(images: EncodedImages) -> tuple[str, int] | None:
    """Describe a split without reading its images: by names, and size and times of its files.

    Returns:
        A hash, and when the newest file was changed, in ns since the epoch. None where the images
        lie in no files that are known, or one is missing.
    """
    files = _files(images)
    if files is None:
        return None
    content, newest_ns = hashlib.sha256(digest(images).encode()), 0
    try:
        for file in files:
            found = os.stat(file)
            # The time of a change tells too when a file was put in place with the old one's date.
            told = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            content.update(f"{os.path.abspath(file)}\0{told}\n".encode(errors="surrogateescape"))
            newest_ns = max(newest_ns, found.st_mtime_ns, found.st_ctime_ns)
    except OSError:
        return None
    return content.hexdigest(), newest_ns


def _files(images: EncodedImages) -> Iterator[str | Path] | None:
    if isinstance(images, ClassFolders):
        return (images.read(row) for row in range(len(images)))
    if isinstance(images, TarImages):
        return iter(images.table.paths)
    if isinstance(images, ChunkImages):
        return (images.folder / name.decode() for name in images.files.tolist())
    if isinstance(images, ParquetImages):
        return (file["filename"] for file in images.table.cache_files)
    return None


def _digest(encoded: Encoded) -> bytes:
    if isinstance(encoded, Path):
        with encoded.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    if isinstance(encoded, Image.Image):
        shape = f"{encoded.mode} {encoded.size}\n".encode()
        return hashlib.sha256(shape + encoded.tobytes()).digest()
    return hashlib.sha256(encoded).digest()
