"""Images in an .npz as ADM's evaluator takes them: `arr_0`, uint8, (N, H, W, 3)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from varlit.arrays import plain_damage
from varlit.errors import UserError
from varlit.metrics.frechet import UNREADABLE

_MEMBER = "arr_0.npy"


class NpzImages:
    """The images of a file, read a batch at a time: ADM's files are of several GB.

    Args:
        path: The .npz.

    Raises:
        UserError: If it is none, or its `arr_0` is no array of images; names what was got.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with plain_damage(), zipfile.ZipFile(path) as archive:
                has_images = _MEMBER in archive.namelist()
                if has_images:
                    with archive.open(_MEMBER) as stream:
                        shape, dtype = _header(stream)
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read as an .npz ({error})") from error
        if not has_images:
            raise UserError(f"{path} holds no `arr_0`; expected images (N, H, W, 3)")
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or dtype != np.uint8:
            raise UserError(
                f"{path}: arr_0 must be square uint8 images (N, H, H, 3); got {dtype} {shape}"
            )
        self.count, self.side_px = int(shape[0]), int(shape[1])

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every `world_size`-th batch, as ids (B,) in the order of the file and images.

        Raises:
            UserError: If the file turns out to be damaged.
        """
        bytes_each = self.side_px * self.side_px * 3
        try:
            with (
                plain_damage(),
                zipfile.ZipFile(self.path) as archive,
                archive.open(_MEMBER) as stream,
            ):
                _header(stream)
                for i, start in enumerate(range(0, self.count, size)):
                    count = min(size, self.count - start)
                    if i % world_size != rank:
                        stream.seek(count * bytes_each, os.SEEK_CUR)
                        continue
                    pixels = np.frombuffer(stream.read(count * bytes_each), np.uint8).copy()
                    images = pixels.reshape(count, self.side_px, self.side_px, 3)
                    ids = torch.arange(start, start + count)
                    yield ids, torch.from_numpy(images).permute(0, 3, 1, 2)
        except UNREADABLE as error:
            raise UserError(f"{self.path} is damaged ({error}); fetch or make it anew") from error


Batch = tuple[Tensor, Tensor]


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array; leaves the stream at its first value."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an .npy of version {version}")
    shape, is_fortran, dtype = read(stream)
    if is_fortran or dtype.hasobject:
        raise ValueError(f"an array of {dtype}, or in Fortran's order")
    return shape, dtype
