"""The batch that all processes share, in one order: rank r holds every world_size-th image of it.

So `EpochBatchSampler` deals it out. Every process must make each call; one process needs no group.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from varlit.metrics.ranks import concatenate_over_ranks, sum_over_ranks


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def in_global_order(rows: Tensor) -> Tensor:
    """Join (B, ...) of all processes, equally many of each, as one process would hold them."""
    size = rank_and_size()[1]
    joined = concatenate_over_ranks(rows)
    return joined.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)


def own_rows(part: Tensor, rows: Tensor) -> Tensor:
    """Rows of the global batch that this process holds, zeros for the others.

    The sum over processes is every row.

    Args:
        part: This process's images of the batch (B, L, ...).
        rows: Which of the world_size * B * L rows, image by image (N,).

    Returns:
        (N, ...).
    """
    rank, size = rank_and_size()
    image, place = rows // part.shape[1], rows % part.shape[1]
    is_own = image % size == rank
    return part[image // size, place] * is_own.view(-1, *[1] * (part.ndim - 2))


def of_first_rank(value: Tensor) -> Tensor:
    """What rank 0 has, on every process: sums in another order may differ by a bit."""
    return sum_over_ranks(value if rank_and_size()[0] == 0 else torch.zeros_like(value))
