"""Files that can tell whether they are whole: torch's zip files with their sha256 at the end.

The sum is taken while the file is written, so a file of 30 GB is not read again for it. It lies in
the comment that a zip file may end with: it is renamed and copied along with the content, and
torch.load does not see it.
"""

import hashlib
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

MARK = b"varlit1 "
TEMPORARY = ".tmp"
"""What follows the name of an unfinished file; then comes the number of its process."""
CHUNK_BYTES = 2**22
_TIME_DIGITS = 19
_NO_COMMENT = b"\0\0"
_SEAL_BYTES = len(MARK) + _TIME_DIGITS + 1 + 64


@dataclass(frozen=True)
class Seal:
    """What a file says of itself.

    Attributes:
        saved_ns: When it was written, in nanoseconds since 1970: saves may follow fast.
        sha256: Of the file as torch wrote it and of the time.
    """

    saved_ns: int
    sha256: str


class _Summed:
    """A file that adds up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = hashlib.sha256()
        self.refusal: OSError | None = None

    def write(self, data: Any) -> int:
        self.sum.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.refusal = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_sealed(content: Any, path: Path, make_room: Callable[[], object] | None = None) -> None:
    """Write plain data so that under its name there is a whole file or the one before it.

    It gets a temporary name in the same folder, is forced to the disk, and only then renamed: also
    after a power cut the name does not stand for a file whose bytes have not arrived.

    Args:
        content: What torch.save takes.
        path: The file.
        make_room: Called when the new file is on the disk, just before it takes its name.

    Raises:
        OSError: If the disk is full or fails; the temporary file is removed.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # a killed process left it, or a stranger, as a link
        with temporary.open("xb") as file:
            summed = _Summed(file)
            _save(content, summed)
            start = MARK + f"{time.time_ns():0{_TIME_DIGITS}d} ".encode()
            summed.sum.update(start)
            file.seek(-len(_NO_COMMENT), os.SEEK_END)
            file.write(struct.pack("<H", _SEAL_BYTES) + start + summed.sum.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        if make_room is not None:
            make_room()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # a write does not say of which file it was
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _save(content: Any, file: _Summed) -> None:
    try:
        torch.save(content, cast(IO[bytes], file))
    except RuntimeError as error:
        # Of a full disk torch says "unexpected pos 6268992 vs 6268880".
        if file.refusal is None:
            raise
        raise file.refusal from error


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk; Windows has no such call."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_seal(path: Path) -> Seal | None:
    """What a file says of itself; None for files of before there were seals.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, _SEAL_BYTES), os.SEEK_END)
        words = file.read().split(b" ")
    if len(words) != 3 or words[0] + b" " != MARK or not words[1].isdigit():
        return None
    return Seal(int(words[1]), words[2].decode("ascii", "replace"))


def flaw(path: Path) -> str:
    """Why a file is not as it was written, in a few words; "" if it is.

    All of it is read. A file without a seal is held to the checksums that every zip file has of its
    parts; they leave out some bytes of its directory, of which nothing that is read depends.

    Raises:
        OSError: If the file cannot be read.
    """
    if path.stat().st_size == 0:
        return "it is empty"
    seal = read_seal(path)
    if seal is None:
        return _zip_flaw(path)
    found = _sum_of(path, seal)
    return "" if found == seal.sha256 else "its bytes are not those that were written (sha256)"


def _sum_of(path: Path, seal: Seal) -> str:
    total = hashlib.sha256()
    left = path.stat().st_size - _SEAL_BYTES - len(_NO_COMMENT)
    if left < 0:
        return ""
    with path.open("rb") as file:
        while chunk := file.read(min(left, CHUNK_BYTES)):
            total.update(chunk)
            left -= len(chunk)
        if file.read(len(_NO_COMMENT)) != struct.pack("<H", _SEAL_BYTES):
            return ""
    total.update(_NO_COMMENT + MARK + f"{seal.saved_ns:0{_TIME_DIGITS}d} ".encode())
    return total.hexdigest()


def _zip_flaw(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    ):
        # An OSError too: a damaged directory sends the reader to places before the file's start.
        return "it is cut off, or no checkpoint"
    return f"its part {damaged} is not as it was written (crc)" if damaged else ""
