"""Sums and concatenations over the processes of a run; the identity in a single process.

Every process must call them, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, distributed

from varlit.errors import UserError

T = TypeVar("T")


class OtherProcessError(UserError):
    """Another process could not go on, and says why."""


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum a tensor of equal shape on all processes; the result lies where the input lay."""
    if not _is_distributed():
        return value
    total = value.to(_collective_device(), copy=True)
    distributed.all_reduce(total)
    return total.to(value.device)


def concatenate_over_ranks(rows: Tensor) -> Tensor:
    """Join (N_r, D) of all processes, in the order of ranks, where N_r may differ or be 0."""
    if not _is_distributed():
        return rows
    device = _collective_device()
    count = torch.tensor([len(rows)], device=device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    longest = max(int(n) for n in counts)
    padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    joined = [part[: int(n)].to(rows.device) for part, n in zip(parts, counts, strict=True)]
    return torch.cat(joined)


def place_among_ranks() -> tuple[int, int]:
    """This process and the number of them: (0, 1) in a single process."""
    if not _is_distributed():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def in_all(work: Callable[[], T]) -> T:
    """Do something on all processes: where it fails on one, it fails on all, and none waits.

    What is done must call nothing that waits for others, but in an `in_all` of its own.

    Raises:
        OtherProcessError: On the processes where it did not fail.
    """
    found: list[T] = []
    error: Exception | None = None
    try:
        found.append(work())
    except Exception as raised:
        error = raised
    num_failed = int(sum_over_ranks(torch.tensor(int(error is not None))))
    if error is not None:
        raise error
    if num_failed:
        raise OtherProcessError("another process could not go on; see its message")
    return found[0]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _collective_device() -> torch.device:
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
