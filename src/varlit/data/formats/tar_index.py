"""Where the images lie in a tar shard: its headers walked once, the result kept beside it.

The index of x.tar is x.tar.index.npz or, where none may write that, a file in <cache>/tars,
<cache> being $VARLIT_CACHE, else varlit in $XDG_CACHE_HOME or ~/.cache. An empty VARLIT_CACHE keeps
none. It counts as long as the shard's size and time stay what they were.

Samples follow WebDataset: neighbours that share the name up to the first dot of its last part.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from varlit.arrays import read_arrays
from varlit.data.formats.folders import IMAGE_SUFFIXES
from varlit.data.formats.tar_headers import Member, TarDamage, walk_members
from varlit.data.progress import Progress
from varlit.data.whole_files import write_bytes
from varlit.errors import UserError
from varlit.places import CACHE_VARIABLE, cache_folder

INDEX_SUFFIX = ".index.npz"
VERSION = 1
NUM_THREADS = 16  # for network file systems, where each header is a round trip
ANY_MAY_WRITE = 0o222
MAX_LABEL_BYTES = 1 << 20
MAX_KEY_BYTES = 1000
"""All names are padded to the longest; no file system has longer ones."""

_IMAGE_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The labelled images of one shard, in its order.

    Attributes:
        names: (n,) fixed-width bytes, names of the image members, unique.
        offsets: (n,) int64, where in the shard the bytes of an image begin.
        sizes: (n,) int64, how many they are.
        labels: (n,) int64.
        num_bytes: Size of the shard.
        mtime_ns: When it was written.
        num_skipped: Samples without an image or a label, or with an earlier one's or an endless
            name.
        skipped: The first of them and what it lacks.
        damage: Why the walk ended before the shard did; empty if it did not.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    num_bytes: int
    mtime_ns: int
    num_skipped: int
    skipped: str
    damage: str

    def __len__(self) -> int:
        return len(self.names)


def read_indices(paths: Sequence[Path], what: str = "indexing tar shards") -> list[TarIndex]:
    """Read the indices of shards, and walk the shards that have none.

    Args:
        paths: The shards.
        what: What to call the work where it takes a while.
    """
    progress = Progress(what, len(paths))
    indices = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for index in pool.map(read_index, paths):
            indices.append(index)
            progress.add()
    progress.end()
    return indices


def read_index(path: Path) -> TarIndex:
    """Read the index of a shard; walk the shard and keep the index where there is none.

    A shard that cannot be opened gives an empty index that says why.
    """
    try:
        status = path.stat()
    except OSError as error:
        return _damaged(error.strerror or str(error))
    places = _index_files(path)
    for place in places:
        stored = _load(place)
        if stored is not None and _is_of(stored, status):
            return stored
    index = index_tar(path)
    if index.num_bytes == status.st_size and index.mtime_ns == status.st_mtime_ns:
        _keep(index, places)
    return index


def index_tar(path: Path) -> TarIndex:
    """Walk the headers of a shard; what comes before any damage is used."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        return _damaged(error.strerror or str(error))
    try:
        status = os.fstat(handle)
        found = _Found()
        damage = ""
        try:
            walk = walk_members(handle, status.st_size)
            for _, members in groupby(walk, key=lambda member: split_name(member.name)[0]):
                found.add(handle, members)
        except (TarDamage, OSError) as error:
            damage = getattr(error, "strerror", None) or str(error)
    finally:
        os.close(handle)
    return found.index(status, damage)


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Split a member's name into WebDataset's key and suffix: at the first dot of its last part.

    >>> split_name(b"a.b/cat_1.JPG")
    (b'a.b/cat_1', b'.jpg')
    """
    folder, slash, last = name.rpartition(b"/")
    stem, dot, rest = last.partition(b".")
    return folder + slash + stem, (dot + rest).lower()


@dataclass
class _Found:
    """The samples found so far."""

    names: list[bytes] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    num_skipped: int = 0
    skipped: str = ""

    def add(self, handle: int, members: Iterator[Member]) -> None:
        """Take the members that share a key."""
        by_suffix: dict[bytes, Member] = {}
        damage: TarDamage | None = None
        try:
            for member in members:
                by_suffix.setdefault(split_name(member.name)[1], member)
        except TarDamage as error:
            damage = error
        self._add_sample(handle, by_suffix, is_cut=damage is not None)
        if damage is not None:
            raise damage

    def _add_sample(self, handle: int, by_suffix: dict[bytes, Member], is_cut: bool) -> None:
        member = next((m for suffix, m in by_suffix.items() if suffix in _IMAGE_SUFFIXES), None)
        label = _read_label(handle, by_suffix)
        key = split_name(next(iter(by_suffix.values())).name)[0]
        if key.endswith(b"/") or not key:
            return  # a hidden file, which is part of no sample
        is_new = key not in self.keys and len(key) <= MAX_KEY_BYTES
        if member is not None and label is not None and is_new:
            self.keys.add(key)
            self.names.append(member.name)
            self.places.append((member.offset, member.size, label))
        elif not is_cut:
            lack = "no image" if member is None else "no label" if label is None else "its name"
            self.num_skipped += 1
            self.skipped = self.skipped or f"{os.fsdecode(key[:MAX_KEY_BYTES])}: {lack}"

    def index(self, status: os.stat_result, damage: str) -> TarIndex:
        """Return them as arrays."""
        offsets, sizes, labels = np.array(self.places, dtype=np.int64).reshape(-1, 3).T.copy()
        return TarIndex(
            np.array(self.names, dtype=None if self.names else "S1"),
            offsets,
            sizes,
            labels,
            num_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            num_skipped=self.num_skipped,
            skipped=self.skipped,
            damage=damage,
        )


def _read_label(handle: int, by_suffix: dict[bytes, Member]) -> int | None:
    """Read `.cls`, else "label" of `.json`; None where there is no whole number of at least 0."""
    for suffix in (b".cls", b".json"):
        member = by_suffix.get(suffix)
        if member is None or member.size > MAX_LABEL_BYTES:
            continue
        content = member.head
        if member.size > len(content):
            content = os.pread(handle, member.size, member.offset)
        return parse_label(suffix, content)
    return None


def parse_label(suffix: bytes, content: bytes) -> int | None:
    """Parse the content of a `.cls` or `.json` member; None as in `_read_label`."""
    if suffix == b".cls":
        word = content.strip()
        return int(word) if word.isdigit() and len(word) < 10 else None
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(content)
        label = parsed.get("label") if isinstance(parsed, dict) else None
        return label if type(label) is int and 0 <= label < 10**9 else None
    return None


def _damaged(reason: str) -> TarIndex:
    none = np.zeros(0, dtype=np.int64)
    return TarIndex(np.zeros(0, dtype="S1"), none, none, none, 0, 0, 0, "", reason)


def _is_of(index: TarIndex, status: os.stat_result) -> bool:
    return (index.num_bytes, index.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _index_files(path: Path) -> list[Path]:
    """Where the index of a shard may lie, the best place first."""
    if os.environ.get(CACHE_VARIABLE) == "":
        return []
    beside, folder = path.with_name(path.name + INDEX_SUFFIX), cache_folder("tars")
    if folder is None:
        return [beside]
    key = os.path.realpath(path).encode("utf-8", "surrogateescape")
    return [beside, folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npz"]


def _load(path: Path) -> TarIndex | None:
    """Read an index; one that is missing or damaged is as good as none."""
    try:
        stored = read_arrays(path)
        about = json.loads(stored["about"].item())
        if about.pop("version") != VERSION:
            return None
        offsets, sizes, labels = stored["places"]
        index = TarIndex(stored["names"], offsets, sizes, labels, **about)
        return index if _is_sound(index) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_sound(index: TarIndex) -> bool:
    """Whether an index is one: of the right types, with all images inside the shard."""
    numbers = (index.num_bytes, index.mtime_ns, index.num_skipped)
    if any(type(n) is not int for n in numbers) or index.names.dtype.kind != "S":
        return False
    columns = (index.offsets, index.sizes, index.labels)
    if any(c.dtype != np.int64 or c.shape != index.names.shape or np.any(c < 0) for c in columns):
        return False
    is_text = isinstance(index.skipped, str) and isinstance(index.damage, str)
    return is_text and not np.any(index.sizes > index.num_bytes - index.offsets)


def _keep(index: TarIndex, places: Sequence[Path]) -> None:
    """Write an index to the first place that takes it; without any the next start walks again."""
    about = {
        "version": VERSION,
        "num_bytes": index.num_bytes,
        "mtime_ns": index.mtime_ns,
        "num_skipped": index.num_skipped,
        "skipped": index.skipped,
        "damage": index.damage,
    }
    content = io.BytesIO()
    columns = np.stack([index.offsets, index.sizes, index.labels])
    np.savez(content, names=index.names, places=columns, about=np.array(json.dumps(about)))
    for place in places:
        with contextlib.suppress(OSError, UserError):
            if place.parent.is_dir() and not place.parent.stat().st_mode & ANY_MAY_WRITE:
                continue  # meant to stay as it is, which root would not notice
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, content.getvalue())
            return
