"""What to do and say when a disk refuses a file: it is full, has no inodes left, is read-only."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from varlit.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
_TOLD: set[str] = set()


class UnwritableError(UserError):
    """A file that the disk refuses; the message says what holds and what helps."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(path, reason, remedy)  # as they are: it may come from another process
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.reason}; {self.remedy}"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside a file; what is written there takes the name when it is whole.

    Args:
        path: The file; its folder is made.

    Raises:
        OSError: If the disk refuses; it names the file, and nothing half-written is left.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a killed process left it, or a stranger, as a link
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno:  # others would lose their text
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, all of it or nothing.

    Raises:
        UserError: If the file is a link.
        OSError: If the disk refuses; a half line is taken back, so that the next one is read well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8", opener=open_no_link) as file:
            file.write(line)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def open_no_link(path: str | Path, flags: int) -> int:
    """Open a file to be changed in place, as os.open does, unless its name is a link.

    In a run's folder from elsewhere a link may lead to any file of this machine. Only the last name
    is looked at: folders may be links, as to a larger disk. Windows cannot refuse them.

    Raises:
        UserError: If it is a link.
        OSError: If the disk refuses.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(
            f"{path} is a link, and the file behind it would be written over; remove the link"
        ) from None


@contextlib.contextmanager
def must_be_written(path: Path, remedy: str) -> Iterator[None]:
    """Put a disk's refusal into a line for the user.

    Args:
        path: What is written within.
        remedy: What holds and what helps, after the reason.

    Raises:
        UnwritableError: If the disk refuses.
    """
    try:
        yield
    except OSError as error:
        raise UnwritableError(path, refusal(error, path), remedy) from error


@contextlib.contextmanager
def may_be_lost(what: str, path: Path) -> Iterator[None]:
    """Write what a long run can do without; if the disk refuses, warn once and go on.

    Args:
        what: Its name, in the plural; each is warned of once.
        path: What is written within.
    """
    try:
        yield
    except (OSError, UnwritableError) as error:
        if what not in _TOLD:
            _TOLD.add(what)
            reason = refusal(error, path) if isinstance(error, OSError) else error.reason
            warnings.warn(
                f"cannot write {path}: {reason}; going on without {what} until there is room",
                stacklevel=3,
            )


def refusal(error: OSError, path: Path) -> str:
    """Why a disk refused a file, in a few words; of a full one how much is free."""
    reason = error.strerror or (str(error.args[0]) if error.args else type(error).__name__)
    return f"{reason} ({free_room(path)})" if error.errno in FULL else reason


def free_room(path: Path) -> str:
    """What is left where a file was to be: bytes, or no more files."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if folder is None or not hasattr(os, "statvfs"):
        return "unknown room"
    found = os.statvfs(folder)
    if found.f_files and not found.f_favail:
        return "no inodes left: remove files, of any size"
    return f"{found.f_bavail * found.f_frsize / 1e6:,.1f} MB free"
