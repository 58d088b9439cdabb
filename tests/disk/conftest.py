"""Disks that are small on purpose: a tmpfs of some kilobytes, which needs root; else a limit."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from varlit import disks


class Disk:
    """A file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        """Change its size, or whether it may be written to."""
        command = ["mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def fill(self, leave_bytes: int = 0) -> Path:
        """Take all room but some; removing the file gives it back."""
        ballast = self.folder / "ballast"
        found = os.statvfs(self.folder)
        free = found.f_bavail * found.f_frsize
        ballast.write_bytes(bytes(max(0, free - leave_bytes)))
        return ballast

    def names(self) -> list[str]:
        """All files, ballast aside."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        found = (str(path.relative_to(self.folder)) for path in files)
        return sorted(name for name in found if name != "ballast")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Mounts a tmpfs with options such as `size=64k`; skips where that is refused."""
    mounted: list[Path] = []

    def mount(options: str) -> Disk:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "varlit-test", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting is refused: it needs root")
        mounted.append(folder)
        return Disk(folder)

    try:
        yield mount
    finally:
        for folder in mounted:
            # Lazily: a process that a failed test has left may still hold a file.
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Have every write beyond a size refused with EFBIG; Python ignores the signal that comes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def limited() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Limits the size of files within `with`; needs no rights."""
    return files_of_at_most


@pytest.fixture(autouse=True)
def _nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test hears its own warnings."""
    monkeypatch.setattr(disks, "_TOLD", set())
