"""The files of checkpoints: how one is written over the one before it, and which ones are whole.

    last.ckpt  last-previous.ckpt  last-previous-2.ckpt  0020000.ckpt  best.ckpt

`last-previous` is of an earlier step than `last`: it was `last` until that was written.
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from varlit.disks import must_be_written
from varlit.errors import UserError
from varlit.training.sealing import TEMPORARY, flaw, read_seal, sync_folder, write_sealed
from varlit.training.shard_files import flaw_of_parts, in_parts

SUFFIX = ".ckpt"
LAST = f"last{SUFFIX}"
SET_ASIDE = ".damaged"


class SealedFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, with their sum, and keeps those before the last.

    Unlike Lightning's own it does not build the file in memory first, a second copy of the state.
    """

    def __init__(self, keep_last: int = 2) -> None:
        """Plan the files.

        Args:
            keep_last: How many of the last checkpoints to keep, the newest included.
        """
        self.keep_last = keep_last
        self._last_step = -1

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; one named last.ckpt moves the one of an earlier step on.

        Raises:
            UserError: If the disk is full or fails; everything that was there still is.
        """
        path, step = Path(path), int(checkpoint.get("global_step", 0))
        with must_be_written(path, _remedy(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name != LAST:
                write_sealed(checkpoint, path)
                return
            # The end of training saves the step of the last save again; it is not a step before.
            is_repeat = step == self._last_step and path.is_file()
            write_sealed(checkpoint, path, None if is_repeat else lambda: self._move_on(path))
            self._last_step = step

    def _move_on(self, path: Path) -> None:
        """Rename each of the last to the next older name; whoever breaks off here loses none."""
        names = [path, *(path.with_name(name) for name in _previous_names(self.keep_last))]
        for surplus in _previous(path.parent):
            if surplus not in names:
                surplus.unlink()
        for newer, older in reversed(list(pairwise(names))):
            if newer.is_file():
                os.replace(newer, older)
        sync_folder(path.parent)


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint that is whole, if any, and what was passed over on the way to it."""

    path: Path | None
    damaged: list[Damaged]


def newest_whole(folder: Path) -> Newest:
    """Find what a run can go on from: last.ckpt, else the checkpoint that was written last.

    Every file on the way is read as a whole; what is found is about to be read anyway.
    """
    damaged: list[Damaged] = []
    for path in candidates(folder):
        reason = damage(path)
        if not reason:
            return Newest(path, damaged)
        damaged.append(Damaged(path, reason))
    return Newest(None, damaged)


def candidates(folder: Path) -> list[Path]:
    """Names of checkpoints in a folder: last.ckpt, also if it is missing, then newest first."""
    others = [p for p in folder.glob(f"*{SUFFIX}") if p.name != LAST] if folder.is_dir() else []
    found = sorted(others, key=lambda path: (-_saved_ns(path), path.name))
    has_last = (folder / LAST).exists() or bool(found)
    return [folder / LAST, *found] if has_last else []


def damage(path: Path) -> str:
    """Why a checkpoint cannot be used, in a few words; "" if it can."""
    if path.is_dir():
        return "it is a folder"
    if not path.exists():
        return "it is missing"
    try:
        reason = flaw(path)
        if reason:
            return reason
        content = read_checkpoint(path)
        return flaw_of_parts(content, path) if in_parts(content) else ""
    except UserError:
        return "it is no checkpoint of varlit"
    except OSError as error:
        return f"it cannot be read: {(error.strerror or str(error)).lower()}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; its tensors stay on disk until they are used.

    Raises:
        UserError: If the file is damaged or is no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # in a damaged pickle any instruction may go wrong in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # of the disk; EINVAL is of a place that a damaged file names
        raise UserError(
            f"{path} is damaged or no checkpoint of varlit ({type(error).__name__}); delete it to "
            "start afresh, or give another --name"
        ) from error
    if not isinstance(content, dict) or "hyper_parameters" not in content:
        raise UserError(f"{path} is no checkpoint of varlit; give another file")
    return content


def set_aside(path: Path) -> Path | None:
    """Rename a damaged checkpoint, so that no save takes it for a good one; None if it is gone.

    It is not deleted: what is left in it may be all that somebody has.
    """
    number = 1
    target = path.with_name(f"{path.name}{SET_ASIDE}")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}{SET_ASIDE}-{number}")
    try:
        os.replace(path, target)
    except FileNotFoundError:
        return None
    return target


def remove_leftovers(folder: Path, name: str = "") -> list[Path]:
    """Remove what processes that are gone have not finished writing, of one file or of all."""
    unfinished = re.compile(rf".+{re.escape(TEMPORARY)}(\d+)")
    removed = []
    for path in [*folder.glob(f"{name}*{TEMPORARY}*"), *folder.glob(f"*.parts/*{TEMPORARY}*")]:
        match = unfinished.fullmatch(path.name)
        if match and path.is_file() and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _remedy(path: Path) -> str:
    """What holds and what helps when a checkpoint cannot be written."""
    before = path if path.is_file() else path.with_name(LAST)
    size = (
        f" (the last one takes {before.stat().st_size / 1e6:,.1f} MB)" if before.is_file() else ""
    )
    return (
        f"those saved before are as they were. Mend it or make room{size}, then run the same "
        "command again; or move the run and name its place by --root"
    )


def _is_running(process_id: int) -> bool:
    if process_id == os.getpid():
        return False  # it has not begun to write: the number is that of an earlier process
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _previous_names(keep_last: int) -> Iterator[str]:
    for age in range(1, keep_last):
        yield f"last-previous{f'-{age}' if age > 1 else ''}{SUFFIX}"


def _previous(folder: Path) -> list[Path]:
    return [p for p in folder.glob(f"last-previous*{SUFFIX}") if p.is_file()]


def _saved_ns(path: Path) -> int:
    """When a checkpoint was written; by the clock of the file system where it does not say."""
    try:
        seal = read_seal(path) if path.is_file() else None
        return seal.saved_ns if seal else path.stat().st_mtime_ns
    except OSError:
        return 0
