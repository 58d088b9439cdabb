"""CIFAR's batches: pickles of one array and two lists, read without running what is in them."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varlit.errors import UserError

SIDE = 32
# All that an array in a pickle of that age asks for; nothing else is ever looked up.
_EMPTY_ARRAY = np.zeros(0).__reduce__()[0]
_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): _EMPTY_ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of a file.

    Attributes:
        pixels: (n, 32, 32, 3) uint8.
        labels: (n,) int64.
        names: (n,) fixed-width bytes.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: np.ndarray


def read_batch(file: Path, md5: str) -> Batch:
    """Read a batch.

    Raises:
        UserError: If the file is missing, or is not the one that its authors made.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{file}': {error.strerror}. {_remedy(file)}") from error
    if not _is_genuine(content, md5):
        raise UserError(
            f"'{file}' is damaged, or not CIFAR's: its md5 is not {md5}. {_remedy(file)}"
        )
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        pixels = np.asarray(found[b"data"], dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
        labels = np.array(found[b"labels"], dtype=np.int64)
        names = np.array(found[b"filenames"], dtype="S")
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"'{file}' is not a batch of CIFAR ({error}). {_remedy(file)}") from error
    return Batch(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels, names)


def _is_genuine(content: bytes, md5: str) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


def _remedy(file: Path) -> str:
    return f"Remove '{file.parent}' and start again."


class _ArraysOnly(pickle.Unpickler):
    """Builds numbers, texts, lists and arrays; whatever else is asked for is refused, not run."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is code")
        return _ARRAY_PARTS[module, name]
