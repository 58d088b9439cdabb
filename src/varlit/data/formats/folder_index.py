"""The names below class folders, listed once and remembered: a million files start in seconds.

The index of a tree is <cache>/folders/<hash>.npz, <cache> being $VARLIT_CACHE, else varlit in
$XDG_CACHE_HOME or ~/.cache; an empty VARLIT_CACHE keeps none (for mounted object stores, whose
folders have no true times). A class folder is listed again where it or a folder in it has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varlit.arrays import read_arrays
from varlit.data.progress import Progress
from varlit.data.whole_files import write_bytes
from varlit.errors import UserError
from varlit.places import cache_folder

VERSION = 1
FEWEST_NAMES = 10_000
"""Smaller trees are listed in no time and leave no file behind."""
MAX_PADDED_BYTES = 2**30
MOST_PADDING = 4  # times what the names themselves take
NUM_THREADS = 16  # for network file systems; the interpreter's lock makes them one on a disk
COARSEST_CLOCK_NS = 2_000_000_000  # FAT's; every other file system's times are finer
UNSETTLED = -1


@dataclass(frozen=True, eq=False)
class Listing:
    """What lies in one class folder.

    Attributes:
        names: (n,) bytes, paths relative to the root, sorted.
        folders: (d,) bytes, every folder that was listed.
        stamps: (d, 2) int64, when their contents and they themselves changed, in ns; `UNSETTLED`
            where another change could still bear the same time.
    """

    names: np.ndarray
    folders: np.ndarray
    stamps: np.ndarray


def list_names(root: Path, folders: Sequence[str], suffixes: Sequence[str]) -> list[np.ndarray]:
    """List the files below some folders of `root`, hidden ones left out, links not followed.

    Args:
        root: The tree.
        folders: Names of folders in it, sorted.
        suffixes: How the files end, in lower case.

    Returns:
        For each folder (n,) fixed-width bytes, paths relative to root, sorted.

    Raises:
        UserError: If a folder cannot be listed, or one long name would fill the memory.
    """
    place, ends = os.fsencode(root), tuple(os.fsencode(suffix) for suffix in suffixes)
    path = _index_file(root, suffixes)
    stored = _read(path) if path is not None else {}

    def visit(folder: bytes) -> Listing:
        known = stored.get(folder)
        if known is not None and _is_fresh(place, known):
            return known
        return _list(place, folder, ends)

    progress = Progress(f"listing the class folders of '{root}'", len(folders))
    found: dict[bytes, Listing] = {}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        keys = [os.fsencode(folder) for folder in folders]
        for folder, listing in zip(keys, pool.map(visit, keys), strict=True):
            found[folder] = listing
            progress.add()
    progress.end()
    names = [listing.names for listing in found.values()]
    _check_widths(root, names)
    if path is not None and sum(map(len, names)) >= FEWEST_NAMES and found != stored:
        _write(path, found)
    return names


def _list(place: bytes, top: bytes, ends: tuple[bytes, ...]) -> Listing:
    """List a class folder and all that is in it."""
    names: list[bytes] = []
    folders: list[bytes] = []
    stamps: list[tuple[int, int]] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        folders.append(folder)
        try:
            stamps.append(_settled_stamp(os.path.join(place, folder)))
            with os.scandir(os.path.join(place, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    # What a link leads to is not asked, which would cost a look at each.
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(folder + b"/" + entry.name)
                    elif entry.name.lower().endswith(ends):
                        names.append(folder + b"/" + entry.name)
        except OSError as error:
            where = os.fsdecode(os.path.join(place, folder))
            raise UserError(f"cannot list '{where}': {error.strerror}.") from error
    return Listing(
        np.array(sorted(names), dtype=np.bytes_),
        np.array(folders),
        np.array(stamps, dtype=np.int64),
    )


def _stamp(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def _settled_stamp(folder: bytes) -> tuple[int, int]:
    """Read a folder's times before it is listed, as far as later changes must differ from them."""
    now_ns = time.time_ns()
    stamp = _stamp(folder)
    return stamp if 0 < max(stamp) < now_ns - COARSEST_CLOCK_NS else (UNSETTLED, UNSETTLED)


def _is_fresh(place: bytes, listing: Listing) -> bool:
    pairs = zip(listing.folders.tolist(), listing.stamps.tolist(), strict=True)
    try:
        return all(_stamp(os.path.join(place, folder)) == tuple(stamp) for folder, stamp in pairs)
    except OSError:
        return False


def _index_file(root: Path, suffixes: Sequence[str]) -> Path | None:
    """Where the index of a tree lies; another version or other suffixes are another file."""
    folder = cache_folder("folders")
    if folder is None:
        return None
    key = "\n".join([str(VERSION), *suffixes, os.path.realpath(root)])
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return folder / f"{name}.npz"


def _read(path: Path) -> dict[bytes, Listing]:
    """Read an index; one that is missing or damaged is as good as none."""
    try:
        parts = read_arrays(path)
        num_names, num_folders = parts["num_names"], parts["num_folders"]
        names = np.split(parts["names"], np.cumsum(num_names)[:-1])
        folders = np.split(parts["folders"], np.cumsum(num_folders)[:-1])
        stamps = np.split(parts["stamps"], np.cumsum(num_folders)[:-1])
        rows = zip(names, folders, stamps, strict=True)
        found = {listing.folders[0].item(): listing for listing in (Listing(*row) for row in rows)}
        return found if _is_sound(parts) else {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def _is_sound(parts: dict[str, np.ndarray]) -> bool:
    """Whether the arrays of an index are of the types and lengths that `_write` writes."""
    names, folders = parts["names"], parts["folders"]
    for counts, counted in ((parts["num_names"], names), (parts["num_folders"], folders)):
        if counts.ndim != 1 or counts.dtype.kind != "i" or np.any(counts < 0):
            return False
        if counted.dtype.kind != "S" or counted.shape != (counts.sum(),):
            return False
    stamps = parts["stamps"]
    return stamps.dtype == np.int64 and stamps.shape == (len(folders), 2)


def _write(path: Path, found: dict[bytes, Listing]) -> None:
    """Write an index; without room or permission the next start lists anew."""
    listings = list(found.values())
    content = io.BytesIO()
    np.savez(
        content,
        names=np.concatenate([listing.names for listing in listings]),
        folders=np.concatenate([listing.folders for listing in listings]),
        stamps=np.concatenate([listing.stamps for listing in listings]),
        num_names=np.array([len(listing.names) for listing in listings]),
        num_folders=np.array([len(listing.folders) for listing in listings]),
    )
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.getvalue())


def _check_widths(root: Path, names: Sequence[np.ndarray]) -> None:
    """Refuse a name whose length, to which all are padded, costs more memory than it is worth."""
    count, width = sum(len(part) for part in names), max(part.itemsize for part in names)
    if count * width <= MAX_PADDED_BYTES:
        return
    used = sum(int(np.strings.str_len(part).sum()) for part in names)
    if count * width > MOST_PADDING * used:
        longest = max(max(names, key=lambda part: part.itemsize).tolist(), key=len)
        raise UserError(
            f"a name below '{root}' has {width} bytes, to which all {count:,} are padded "
            f"({count * width / 2**30:.1f} GiB): shorten '{os.fsdecode(longest)}'."
        )
