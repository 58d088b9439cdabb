"""Images in local tar shards (WebDataset's layout), read at random through an index.

A tar is not unpacked and nothing in it is trusted to be a path: an image is so many bytes at some
offset of a shard.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.shards_file import SHARDS_FILE
from varlit.data.formats.tar_index import TarIndex, read_indices
from varlit.data.formats.tar_places import LAYOUT, ShardFiles, find_shards, tars_in
from varlit.errors import UserError

MAX_OPEN_SHARDS = 64
MAX_NUMBERED_CLASSES = 100_000
NUM_NAMED = 3


@dataclass(frozen=True, eq=False)
class ShardTable:
    """Where shards lie, and what they were when they were indexed.

    Attributes:
        paths: The files.
        names: Their part of an image's name: the same on every machine.
        num_bytes: (S,) int64.
        mtimes_ns: (S,) int64.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    num_bytes: np.ndarray
    mtimes_ns: np.ndarray


@dataclass(frozen=True, eq=False)
class TarImages:
    """Images of a split in the order of shards, then of each tar.

    Attributes:
        place: Where the shards come from, as the user wrote it.
        class_names: Names in the order of the labels.
        labels: (N,) int64.
        names: (N,) fixed-width bytes, <shard>/<name in the shard>.
        shards: (N,) int32, rows of the table.
        offsets: (N,) int64, where in its shard an image begins.
        sizes: (N,) int64, how many bytes it has.
        table: The shards.
    """

    place: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    names: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    table: ShardTable

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            OSError: If its shard has vanished, or is no longer the one that was indexed.
        """
        shard, size = int(self.shards[row]), int(self.sizes[row])
        table = self.table
        stamp = int(table.num_bytes[shard]), int(table.mtimes_ns[shard])
        opened = _open(table.paths[shard], *stamp)
        content = os.pread(opened.handle, size, int(self.offsets[row]))
        if len(content) < size:
            raise OSError("the shard ends within the image")
        return content

    def where(self, row: int) -> str:
        """Return the shard and the name in it."""
        shard = int(self.shards[row])
        name = os.fsdecode(self.names[row].item())
        return f"{self.table.paths[shard]}: {name[len(self.table.names[shard]) + 1 :]}"

    def take(self, rows: np.ndarray) -> TarImages:
        """Return the split with only some of its images."""
        return TarImages(
            self.place,
            self.class_names,
            self.labels[rows],
            self.names[rows],
            self.shards[rows],
            self.offsets[rows],
            self.sizes[rows],
            self.table,
        )


def is_listed_tars(root: str) -> bool:
    """Whether `root` can mean nothing but tar shards: it names them, or a list beside them does."""
    return root.endswith(".tar") or (Path(root) / SHARDS_FILE).is_file()


def is_tars(root: str) -> bool:
    """Whether `open_tars` opens `root`: a .tar file, a pattern of them or a folder of them."""
    return is_listed_tars(root) or (Path(root).is_dir() and bool(tars_in(Path(root))))


def open_tars(root: str, val_root: str = "") -> dict[str, EncodedImages]:
    """Open local tar shards.

    Args:
        root: A folder with shards.json or with tars, a pattern such as x/train-{000..099}.tar, or
            one tar. In a folder, tars that say train are the training set and those that say val
            or validation the validation set; if none says train, the rest is.
        val_root: The same for validation, where it lies elsewhere.

    Returns:
        "train" and, if there is one, "val".

    Raises:
        UserError: If nothing is found, no image can be used, or the labels are not the classes.
    """
    found = find_shards(root)
    parts = {split: _read(found, split) for split in ("train", "val") if split in found.splits}
    listed = found.listed
    if val_root:
        there = find_shards(val_root)
        if listed and there.listed and there.listed.class_names != listed.class_names:
            raise UserError(
                f"'{val_root}' and '{root}' name other classes in their {SHARDS_FILE}: both sets "
                "need the same class_names."
            )
        listed = listed or there.listed
        parts["val"] = _read(there, "val" if "val" in there.splits else "train")
    names = listed.class_names if listed else _numbers(parts.values())
    return {split: _joined(part, names) for split, part in parts.items()}


@dataclass(frozen=True)
class _Part:
    """A split that is read but whose classes are not yet known."""

    files: ShardFiles
    paths: list[Path]
    indices: list[TarIndex]

    @property
    def max_label(self) -> int:
        return max(int(index.labels.max(initial=0)) for index in self.indices)


class _OpenShard:
    """A file descriptor that lives as long as somebody reads from it."""

    def __init__(self, path: str, num_bytes: int, mtime_ns: int) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY)
        status = os.fstat(self.handle)
        if (status.st_size, status.st_mtime_ns) != (num_bytes, mtime_ns):
            raise OSError("the shard has changed since the run began")

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


# One table for each process: descriptors are not sent to workers with the images, and `pread` has
# no position that a forked worker could share.
_open = functools.lru_cache(maxsize=MAX_OPEN_SHARDS)(_OpenShard)


def _read(found: ShardFiles, split: str) -> _Part:
    """Index the shards of a split; warn of what cannot be used.

    Raises:
        UserError: If nothing can.
    """
    paths = found.splits[split]
    indices = read_indices(paths, f"indexing the {split} shards of '{found.place}'")
    damaged = [
        f"{path.name} ({index.damage})"
        for path, index in zip(paths, indices, strict=True)
        if index.damage
    ]
    skipped = [
        f"{path.name}: {index.skipped}"
        for path, index in zip(paths, indices, strict=True)
        if index.num_skipped
    ]
    num_images, num_skipped = sum(map(len, indices)), sum(index.num_skipped for index in indices)
    if num_images == 0:
        causes = damaged or skipped or ["no sample in them"]
        raise UserError(
            f"no image in the {len(paths):,} {split} shard(s) of '{found.place}' can be used, the "
            f"first: {causes[0]}; {LAYOUT}."
        )
    if num_skipped:
        _warn(
            f"{num_skipped:,} of {num_skipped + num_images:,} samples of '{found.place}' are left "
            f"out, such as {skipped[0]}."
        )
    if damaged:
        _warn(
            f"{len(damaged):,} of {len(paths):,} {split} shards of '{found.place}' are damaged"
            f"{_named(damaged)}; {_loss(found, split, num_images)}. Fetch or pack them again."
        )
    elif (lost := _num_lost(found, split, num_images)) != 0:
        _warn(
            f"'{found.place}' has {num_images:,} {split} images, {SHARDS_FILE} says "
            f"{num_images + lost:,}: write it again with `varlit data index`."
        )
    return _Part(found, list(paths), indices)


def _num_lost(found: ShardFiles, split: str, num_images: int) -> int:
    """How many images shards.json has more than were found; 0 where it does not say."""
    has_counts = found.listed is not None and split in found.listed.splits
    return found.listed.count(split) - num_images if found.listed and has_counts else 0


def _loss(found: ShardFiles, split: str, num_images: int) -> str:
    lost = _num_lost(found, split, num_images)
    if lost:
        return f"{lost:,} of {num_images + lost:,} images are missing"
    return f"the {num_images:,} images before the damage are used"


def _numbers(parts: Iterable[_Part]) -> tuple[str, ...]:
    """Name classes that have no names by their labels."""
    part = max(parts, key=lambda part: part.max_label)
    if part.max_label >= MAX_NUMBERED_CLASSES:
        raise UserError(
            f"'{part.files.place}' has label {part.max_label}: expected labels from 0 on; above "
            f"{MAX_NUMBERED_CLASSES:,} classes want names (`varlit data index --class_names`)."
        )
    return tuple(map(str, range(part.max_label + 1)))


def _joined(part: _Part, class_names: tuple[str, ...]) -> TarImages:
    found, indices = part.files, part.indices
    if part.max_label >= len(class_names):
        raise UserError(
            f"'{found.place}' has label {part.max_label}, but there are {len(class_names)} class "
            f"names: expected labels below that; mend the class_names in {SHARDS_FILE}."
        )
    names = tuple(path.relative_to(found.folder).as_posix() for path in part.paths)
    table = ShardTable(
        tuple(map(str, part.paths)),
        names,
        np.array([index.num_bytes for index in indices], dtype=np.int64),
        np.array([index.mtime_ns for index in indices], dtype=np.int64),
    )
    prefixed = [
        np.char.add(os.fsencode(name) + b"/", index.names)
        for name, index in zip(names, indices, strict=True)
    ]
    return TarImages(
        found.place,
        class_names,
        np.concatenate([index.labels for index in indices]),
        np.concatenate(prefixed),
        np.repeat(np.arange(len(indices), dtype=np.int32), [len(index) for index in indices]),
        np.concatenate([index.offsets for index in indices]),
        np.concatenate([index.sizes for index in indices]),
        table,
    )


def _named(things: Sequence[str]) -> str:
    more = f" and {len(things) - NUM_NAMED:,} more" if len(things) > NUM_NAMED else ""
    return f": {', '.join(things[:NUM_NAMED])}{more}"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
