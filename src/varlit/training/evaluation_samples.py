"""Samples in one .npz as ADM's evaluator takes them: `arr_0`, uint8, (N, H, W, 3).

Images are written to their own places in a plain file while they are drawn, by any number of
processes; the .npz is made of it at the end. No more than a batch is ever in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from varlit.disks import may_be_lost, must_be_written, open_no_link, whole_file
from varlit.errors import UserError

_RAW, _WRITTEN = "samples.npy", "samples.json"
_CHUNK_BYTES = 1 << 24
_REMEDY = "free some space and run the same command again; what was drawn is kept"


class SampleFile:
    """The images of one evaluation on their way into an .npz.

    Args:
        folder: Of the evaluation; the plain file waits there.
        path: The .npz.
        count: N.
        side_px: H and W.
    """

    def __init__(self, folder: Path, path: Path, count: int, side_px: int) -> None:
        self.raw, self.path = folder / _RAW, path.expanduser().absolute()
        self._note = folder / _WRITTEN
        self._shape = (count, side_px, side_px, 3)
        self._bytes_each = side_px * side_px * 3

    @property
    def is_written(self) -> bool:
        """Whether the .npz is there already, as this evaluation left it."""
        return self._is_as_noted and self.noted == self.path

    @property
    def noted(self) -> Path | None:
        """Where this evaluation wrote its .npz, be it there or not; None if it never did."""
        told = self._told()
        return Path(told[0]) if told else None

    @property
    def is_begun(self) -> bool:
        """Whether an earlier run has left images to go on with."""
        return self.raw.is_file()

    def take_over(self) -> bool:
        """Copy the .npz that this evaluation wrote under another name, if it is as it was.

        Raises:
            UserError: If there is no right to write, or no space.
        """
        source = self.noted
        if source is None or not self._is_as_noted:
            return False
        self._write_whole(lambda temporary: shutil.copyfile(source, temporary))
        return True

    def begin(self) -> None:
        """Make the plain file, with all places empty; the first process does so.

        Raises:
            UserError: If there is no right to write, or no space.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(f"no right to write in {self.path.parent}")
            with whole_file(self.raw) as temporary, temporary.open("wb") as stream:
                _write_header(stream, self._shape)
                offset = stream.tell()
                size = offset + self._shape[0] * self._bytes_each
                if shutil.disk_usage(self.raw.parent).free < 2 * size:
                    raise OSError(f"{2 * size / 1e9:.1f} GB are needed while the file is made")
                stream.truncate(size)
        except OSError as error:
            raise UserError(
                f"cannot write the samples {self.path} ({error}); free some space, name another "
                "file, or leave samples out"
            ) from error

    def write(self, ids: Tensor, images: Tensor) -> None:
        """Put uint8 images (B, 3, H, W) to the places of their ids (B,)."""
        pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        with must_be_written(self.raw, _REMEDY), self._open_raw() as stream:
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            start = stream.tell()
            for i, row in zip(ids.tolist(), pixels, strict=True):
                stream.seek(start + i * self._bytes_each)
                stream.write(row.tobytes())

    def flush(self) -> None:
        """Bring this process's images to the disk, before their features are saved."""
        if self.raw.is_file():
            with must_be_written(self.raw, _REMEDY), self._open_raw() as stream:
                os.fsync(stream.fileno())

    def _open_raw(self) -> BinaryIO:
        return open(self.raw, "r+b", opener=open_no_link)

    def finish(self) -> None:
        """Make the .npz of the plain file, whole or not at all; the first process does so.

        Raises:
            UserError: If there is no space.
        """

        def zip_raw(temporary: Path) -> None:
            with (
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
                archive.open("arr_0.npy", "w", force_zip64=True) as target,
                self.raw.open("rb") as source,
            ):
                shutil.copyfileobj(source, target, _CHUNK_BYTES)

        self._write_whole(zip_raw)
        self.raw.unlink()

    def _write_whole(self, write: Callable[[Path], object]) -> None:
        """Write the .npz under a temporary name, rename it, and note it."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.unlink(missing_ok=True)  # as in whole_file
                write(temporary)
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the samples {self.path} ({error}); free some space and run the same "
                "command again"
            ) from error
        # Without the note the next evaluation draws them again.
        with may_be_lost("notes on samples", self._note), whole_file(self._note) as temporary:
            temporary.write_text(json.dumps([str(self.path), *_stamp(self.path)]))

    @property
    def _is_as_noted(self) -> bool:
        told = self._told()
        try:
            return bool(told) and told[1:] == _stamp(Path(told[0]))
        except OSError:
            return False

    def _told(self) -> list[Any]:
        """Path, size and time of the .npz that was written; empty if none was."""
        try:
            told = json.loads(self._note.read_text())
            return told if isinstance(told, list) and isinstance(told[0], str) else []
        except (OSError, ValueError, LookupError, RecursionError):
            return []


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _write_header(stream: object, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
