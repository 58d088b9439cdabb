"""Precision and recall by nearest neighbours: fidelity and diversity, told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.metrics.kernel import double_device
from varlit.metrics.ranks import place_among_ranks, sum_over_ranks

# Rows of a distance matrix held at a time: 2,048 x 50,000 doubles are 0.8 GB.
_CHUNK = 2048


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1."""

    precision: float  # of generated images that lie on the real manifold
    recall: float  # of real images that lie on the generated manifold


def precision_recall(
    real: Tensor | np.ndarray,
    fake: Tensor | np.ndarray,
    k: int = 3,
    device: torch.device | str = "cpu",
) -> PrecisionRecall:
    """Improved precision and recall, Kynkaanniemi et al. 2019, algorithm 1.

    A set's manifold is the union of balls around its members, each reaching to the member's
    k-th nearest neighbour in the set, itself not counted. Distances are in float64, where ADM's
    evaluator rounds to float16. With several processes each measures some of the rows, and all
    must call it with the same features.

    Args:
        real: Features (N, D).
        fake: Features (M, D).
        k: Neighbours that a ball reaches to; the paper and ADM use 3.
        device: Where to compute; the distances of 50,000 pairs of Inception's features take
            minutes on a CPU.

    Raises:
        UserError: If a set has no k neighbours to offer.
    """
    device = double_device(device)
    real, fake = (torch.as_tensor(rows).to(device, torch.float64) for rows in (real, fake))
    if min(len(real), len(fake)) <= k:
        raise UserError(
            f"{k} neighbours need more than {k} images on both sides; got {len(real)} real and "
            f"{len(fake)} generated"
        )
    # Distances do not change with the origin, but lose fewer digits near it.
    centre = real.mean(dim=0)
    real, fake = real - centre, fake - centre
    return PrecisionRecall(
        precision=_share_inside(fake, real, _squared_radii(real, k)),
        recall=_share_inside(real, fake, _squared_radii(fake, k)),
    )


def _squared_radii(points: Tensor, k: int) -> Tensor:
    """Squared distance of each of (N, D) to its k-th neighbour: (N,)."""

    def of_rows(start: int, chunk: Tensor) -> Tensor:
        distance = _squared_distances(chunk, points)
        rows = torch.arange(len(chunk), device=points.device)
        distance[rows, rows + start] = torch.inf  # a point is not its own neighbour
        return distance.kthvalue(k, dim=1).values

    return _by_chunks(points, of_rows)


def _share_inside(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """Share of (M, D) that lie in at least one of the balls around (N, D)."""

    def of_rows(_start: int, chunk: Tensor) -> Tensor:
        return (_squared_distances(chunk, centres) <= squared_radii).any(dim=1)

    return float(_by_chunks(points, of_rows).mean())


def _by_chunks(points: Tensor, of_rows: Callable[[int, Tensor], Tensor]) -> Tensor:
    """One float64 number for each of (N, D), shared out over the processes.

    The chunks do not depend on the number of processes, so neither do the last digits.
    """
    rank, world_size = place_among_ranks()
    found = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for i, start in enumerate(range(0, len(points), _CHUNK)):
        if i % world_size == rank:
            stop = start + _CHUNK
            found[start:stop] = of_rows(start, points[start:stop]).double()
    return sum_over_ranks(found)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)  # (M, N)
    return squares.addmm_(a, b.T, alpha=-2).clamp_(min=0)
