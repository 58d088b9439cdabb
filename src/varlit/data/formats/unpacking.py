"""Unpacking tars of data sets: plain files and folders below the target, and nothing else.

Python's own filter would let links pass that stay inside, and has let others out more than once.
Images need no links.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath, PureWindowsPath


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack a tar, plain or compressed.

    Args:
        archive: The tar.
        folder: Where to; it is made where it does not exist.

    Raises:
        ValueError: At the first member that is a link, a device or a pipe, or whose name leads
            out of the folder. What came before it is in the folder.
        OSError: If it cannot be read or written; `tarfile.TarError` is turned into one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _check(member)
                tar.extract(member, folder, set_attrs=False, filter="data")
    except tarfile.TarError as error:
        raise OSError(str(error)) from error


def _check(member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    drive = PureWindowsPath(member.name)
    if path.is_absolute() or drive.drive or "\\" in member.name or ".." in path.parts:
        raise ValueError(f"its member '{member.name}' leads out of the folder")
    if not (member.isreg() or member.isdir()):
        raise ValueError(f"its member '{member.name}' is a link or a device, and no plain file")
