"""Precision and recall by nearest neighbours: fidelity and diversity, told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varlit.errors import UserError

# Rows of a distance matrix held at a time: 2,048 x 50,000 doubles are 0.8 GB.
_CHUNK = 2048


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1."""

    precision: float  # of generated images that lie on the real manifold
    recall: float  # of real images that lie on the generated manifold


def precision_recall(
    real: Tensor | np.ndarray, fake: Tensor | np.ndarray, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall, Kynkaanniemi et al. 2019, algorithm 1.

    A set's manifold is the union of balls around its members, each reaching to the member's
    k-th nearest neighbour in the set, itself not counted.

    Args:
        real: Features (N, D).
        fake: Features (M, D).
        k: Neighbours that a ball reaches to; the paper and ADM use 3.

    Raises:
        UserError: If a set has no k neighbours to offer.
    """
    real, fake = torch.as_tensor(real).double(), torch.as_tensor(fake).double()
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
    radii = []
    for start in range(0, len(points), _CHUNK):
        chunk = points[start : start + _CHUNK]
        distance = _squared_distances(chunk, points)
        rows = torch.arange(len(chunk))
        distance[rows, rows + start] = torch.inf  # a point is not its own neighbour
        radii.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _share_inside(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """Share of (M, D) that lie in at least one of the balls around (N, D)."""
    inside = [
        (_squared_distances(chunk, centres) <= squared_radii).any(dim=1)
        for chunk in points.split(_CHUNK)
    ]
    return float(torch.cat(inside).double().mean())


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1)  # (M, N)
    return squares.addmm_(a, b.T, alpha=-2).clamp_(min=0)
