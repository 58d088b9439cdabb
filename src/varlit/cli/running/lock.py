"""One training at a time in a run's folder: two would write over each other's checkpoints."""

import datetime
import errno
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType

from varlit.disks import open_no_link
from varlit.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """Holds `<run>/.lock` from `take` to `release`, or to the end of the process, however it ends.

    It is a lock by the operating system (POSIX, fcntl), so nobody has to find out whether what is
    left of a killed process is stale. Not flock: a loader's worker would inherit that, and hold it
    for seconds after its parent was killed. Within one process it does not keep out a second.
    """

    def __init__(self, run_dir: Path) -> None:
        """Plan the lock; nothing is touched.

        Args:
            run_dir: Folder of the run.
        """
        self.path = run_dir / LOCK_FILE
        self._number: int | None = None

    def __enter__(self) -> "RunLock":
        """Take it."""
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()

    def take(self) -> None:
        """Take the lock, if it is not held by this object already.

        Warns where the file system has no locks, and where the last holder was another machine and
        has not said goodbye: its locks may not be seen here.

        Raises:
            UserError: If another process holds it, with its number and machine; or if it is a link.
        """
        if fcntl is None or self._number is not None:
            return
        number = open_no_link(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(number)
            os.close(number)
            if error.errno in _TAKEN:
                raise UserError(
                    f"{self.path.parent} is being trained by {holder or 'another process'}; wait "
                    "for its end or stop it, or give another --name"
                ) from None
            warnings.warn(
                f"the file system of {self.path.parent} has no locks ({error.strerror}); see to it "
                "yourself that no second process trains this run",
                stacklevel=2,
            )
            return
        before = _read(number)
        if before and f" on {socket.gethostname()}," not in before:
            warnings.warn(
                f"{self.path.parent} was trained by {before}, which was killed, or its lock cannot "
                "be seen from here; see to it that it is gone",
                stacklevel=2,
            )
        self._number = number
        _write(number, describe_process())

    def release(self) -> None:
        """Let others have it; the empty file stays, to remove it would be a race."""
        if self._number is not None:
            _write(self._number, "")
            os.close(self._number)
            self._number = None


def describe_process() -> str:
    """This process, in words."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


def _read(number: int) -> str:
    return os.pread(number, 1000, 0).decode(errors="replace").strip()


def _write(number: int, text: str) -> None:
    os.ftruncate(number, 0)
    os.pwrite(number, text.encode(), 0)
