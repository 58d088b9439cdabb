"""What lies where in a chunk of litdata (0.2.76, and as far back as items were plain trees).

A chunk is uint32 n, then n + 1 uint32 offsets from the start of the file, then the items; an item
is one uint32 size for each of its values, then their bytes. Dicts of plain values (bytes, int,
str) are kept otherwise: their items are empty, and at the end of the file are the rows as an Arrow
file, its length as uint32, and eight magic bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS_MAGIC = b"LDARW01\0"
FILE_MAGIC = b"ARROW1"
FOOTER_BYTES = 12


@dataclass(frozen=True)
class Layout:
    """What an item is made of.

    Attributes:
        keys: Of its values; their numbers in a tuple.
        image: Place of the image among them.
        label: Place of the label.
        kind: What litdata calls the kind of the image.
    """

    keys: tuple[str, ...]
    image: int
    label: int
    kind: str


def locate_items(content: np.ndarray, count: int, layout: Layout) -> np.ndarray:
    """Find images and labels in a chunk, without reading the images.

    Args:
        content: (num_bytes,) uint8, a memory map of the file.
        count: Items that index.json promises.
        layout: What they are made of.

    Returns:
        (3, count) int64: first byte of an image, its size in bytes, its label.

    Raises:
        ValueError: If the chunk is damaged.
        LookupError: The same.
    """
    table = content[4 : 4 * (count + 2)].view("<u4").astype(np.int64)
    if content[:4].view("<u4")[0] != count or len(table) != count + 1:
        raise ValueError(f"it does not hold {count} items")
    if np.any(np.diff(table) < 0) or table[-1] > len(content):
        raise ValueError("its offsets lead beyond it")
    if table[-1] == table[0] and count:
        return _locate_rows(content, count, layout)
    return _locate_trees(content, table, layout)


def _locate_trees(content: np.ndarray, table: np.ndarray, layout: Layout) -> np.ndarray:
    header_bytes = 4 * len(layout.keys)
    sizes = _gather(content, table[:-1], header_bytes).view("<u4").astype(np.int64)
    ends = table[:-1, None] + header_bytes + np.cumsum(sizes, axis=1)
    if np.any(ends[:, -1] != table[1:]) or np.any(sizes[:, layout.label] != 8):
        raise ValueError("its sizes do not add up")
    labels = _gather(content, ends[:, layout.label] - 8, 8).view("<i8")[:, 0]
    image_sizes = sizes[:, layout.image]
    return np.stack([ends[:, layout.image] - image_sizes, image_sizes, labels])


def _locate_rows(content: np.ndarray, count: int, layout: Layout) -> np.ndarray:
    import pyarrow
    import pyarrow.ipc

    if content[-8:].tobytes() != ROWS_MAGIC:
        raise ValueError("its end is missing")
    length = int(content[-FOOTER_BYTES:-8].view("<u4")[0])
    whole = pyarrow.py_buffer(content)
    rows = whole.slice(len(content) - FOOTER_BYTES - length, length)
    if rows[: len(FILE_MAGIC)].to_pybytes() == FILE_MAGIC:
        table = pyarrow.ipc.open_file(rows).read_all()
    else:
        table = pyarrow.ipc.open_stream(rows).read_all()
    images, labels = (table.column(layout.keys[place]) for place in (layout.image, layout.label))
    if len(table) != count or images.null_count or labels.null_count:
        raise ValueError(f"it does not hold {count} whole items")
    places = [_places_in(chunk, whole) for chunk in images.chunks]
    found = np.concatenate([*places, np.zeros((2, 0), dtype=np.int64)], axis=1)
    if np.any(found[0] < 0) or np.any(found.sum(axis=0) > len(content)):
        raise ValueError("its images are compressed")
    return np.concatenate([found, labels.to_numpy().astype(np.int64)[None]])


def _places_in(column: Any, whole: Any) -> np.ndarray:
    """Where the values of a binary Arrow array lie in the buffer it was read from, (2, n) int64."""
    _, ends, values = column.buffers()
    word = "<i8" if str(column.type).startswith("large") else "<i4"
    bounds = np.frombuffer(ends, word)[column.offset : column.offset + len(column) + 1]
    bounds = bounds.astype(np.int64) + (values.address - whole.address)
    return np.stack([bounds[:-1], np.diff(bounds)])


def _gather(content: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """Return the (n, width) bytes that begin at `starts`."""
    return content[starts[:, None] + np.arange(width)]
