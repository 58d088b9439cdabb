"""Samples in one .npz as ADM's evaluator takes them: `arr_0`, uint8, (N, H, W, 3).

Images are written to their own places in a plain file while they are drawn, by any number of
processes; the .npz is made of it at the end. No more than a batch is ever in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
from torch import Tensor

from varlit.errors import UserError

_RAW, _WRITTEN = "samples.npy", "samples.json"
_CHUNK_BYTES = 1 << 24


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
        try:
            told = json.loads(self._note.read_text())
            return bool(told == [str(self.path), self.path.stat().st_size])
        except (OSError, ValueError):
            return False

    @property
    def is_begun(self) -> bool:
        """Whether an earlier run has left images to go on with."""
        return self.raw.is_file()

    def begin(self) -> None:
        """Make the plain file, with all places empty; the first process does so.

        Raises:
            UserError: If there is no right to write, or no space.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(f"no right to write in {self.path.parent}")
            temporary = self.raw.with_name(f".{_RAW}.{os.getpid()}")
            with temporary.open("wb") as stream:
                _write_header(stream, self._shape)
                offset = stream.tell()
                size = offset + self._shape[0] * self._bytes_each
                if shutil.disk_usage(self.raw.parent).free < 2 * size:
                    raise OSError(f"{2 * size / 1e9:.1f} GB are needed while the file is made")
                stream.truncate(size)
            os.replace(temporary, self.raw)
        except OSError as error:
            raise UserError(
                f"cannot write the samples {self.path} ({error}); free some space, name another "
                "file, or leave samples out"
            ) from error

    def write(self, ids: Tensor, images: Tensor) -> None:
        """Put uint8 images (B, 3, H, W) to the places of their ids (B,)."""
        pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        with self.raw.open("r+b") as stream:
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            start = stream.tell()
            for i, row in zip(ids.tolist(), pixels, strict=True):
                stream.seek(start + i * self._bytes_each)
                stream.write(row.tobytes())

    def flush(self) -> None:
        """Bring this process's images to the disk, before their features are saved."""
        if self.raw.is_file():
            with self.raw.open("r+b") as stream:
                os.fsync(stream.fileno())

    def finish(self) -> None:
        """Make the .npz of the plain file, whole or not at all; the first process does so.

        Raises:
            UserError: If there is no space.
        """
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            try:
                with (
                    zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
                    archive.open("arr_0.npy", "w", force_zip64=True) as target,
                    self.raw.open("rb") as source,
                ):
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the samples {self.path} ({error}); free some space and run the same "
                "command again"
            ) from error
        self._note.write_text(json.dumps([str(self.path), self.path.stat().st_size]))
        self.raw.unlink()


def _write_header(stream: object, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
