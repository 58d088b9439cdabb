"""Arrays in .npz files that anybody may have written: read as arrays, or refused by one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read arrays of an .npz by their names.

    Args:
        path: The file.
        names: Which ones; those that are not there are left out. All, if none is given.

    Raises:
        OSError: If there is no such file, or the disk fails.
        ValueError: If it is no .npz, a damaged one, or holds something else under these names.
    """
    with _opened(path) as archive:
        found = {name: archive[name] for name in names or archive.files if name in archive}
        for name, array in found.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"`{name}` is no array")
        return found


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz.

    Raises:
        OSError: If there is no such file, or the disk fails.
        ValueError: If it is no .npz.
    """
    with _opened(path) as archive:
        return list(archive.files)


@contextmanager
def plain_damage() -> Iterator[None]:
    """Make one ValueError of whatever zipfile and numpy raise on damaged files."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # zip, zlib, tokens, syntax, memory: the list has no end
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{type(error).__name__}: {reason}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with plain_damage(), np.load(path, allow_pickle=False) as archive:
        if not hasattr(archive, "files"):
            raise ValueError("one array, and no .npz")
        yield archive
