"""What a kind of file is: how a sound one is made, read, and what a right answer looks like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.mutations import Mutation, mutate_bytes
from varlit.data.decoding import BrokenImageError
from varlit.errors import UserError

REFUSALS = (UserError, BrokenImageError)


class Refused(UserError):
    """A reader that refuses by an answer and not by an error, such as None, put into an error."""


def equal(got: Any, original: Any) -> str:
    """What differs from the original, in a few words; "" if nothing does."""
    return "" if same(got, original) else f"got {str(got)[:200]}"


def same(a: Any, b: Any) -> bool:
    """Whether nested plain data are equal, tensors and arrays to the bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        is_tensor = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return is_tensor and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: For the table.
        make: Writes a folder with a sound one.
        read: Reads the folder by the public reader.
        files: Which files of the folder are changed (patterns), and how.
        judge: Of what was read and the original: what is wrong, "" if nothing is.
        share: How many of these are tried, against the other kinds.
        right: What counts as read correctly, for the table.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: Mapping[str, tuple[Mutation, ...]] = field(
        default_factory=lambda: {"*": (mutate_bytes,)}
    )
    judge: Callable[[Any, Any], str] = equal
    share: float = 1.0
    right: str = "equal"
