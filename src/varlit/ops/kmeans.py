"""Lloyd's k-means, for a codebook that starts where the data are."""

from __future__ import annotations

import torch
from torch import Tensor

from varlit.ops.quantize import MAX_MATRIX_ELEMENTS, nearest_code, strict_fp32

NUM_ITERATIONS = 10


@torch.no_grad()
def kmeans(
    points: Tensor,
    num_clusters: int,
    generator: torch.Generator,
    search: str = "euclidean",
    num_iterations: int = NUM_ITERATIONS,
) -> Tensor:
    """Centres of clusters, each the mean of the points that find it by `search`.

    The start is a random choice of points, so centres go where points are dense. A cluster that
    is empty moves to the point farthest from its centre; several take several such points.

    Args:
        points: (N, C) fp32; with fewer points than clusters, centres lie on top of each other.
        num_clusters: V.
        generator: On the CPU; the choice is the same on every device.
        search: `euclidean` or `cosine`, see `nearest_code`.
        num_iterations: Lloyd's steps, 10 as in lucidrains' vector-quantize-pytorch.

    Returns:
        (V, C) fp32. Sums are in fp64, so that their order hardly matters.
    """
    chosen = torch.randperm(len(points), generator=generator)
    chosen = chosen.repeat(-(-num_clusters // len(points)))[:num_clusters]
    centres = points[chosen.to(points.device)]
    with strict_fp32(points.device):
        for _ in range(num_iterations):
            centres = _moved(points, centres, _assign(points, centres, search))
    return centres


def sums_by_code(points: Tensor, index: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many points each code has and their sum, without waiting for the device.

    Args:
        points: (N, C).
        index: Code of each point (N,).
        num_codes: V.

    Returns:
        Counts (V,) and sums (V, C), fp64.
    """
    counts = points.new_zeros(num_codes, dtype=torch.float64)
    counts.index_add_(0, index, torch.ones_like(index, dtype=torch.float64))
    sums = points.new_zeros(num_codes, points.shape[1], dtype=torch.float64)
    return counts, sums.index_add_(0, index, points.double())


def _assign(points: Tensor, centres: Tensor, search: str) -> Tensor:
    """Nearest centre of each point, a bounded number of distances at a time.  # (N,)"""
    chunk = max(1, MAX_MATRIX_ELEMENTS // len(centres))
    return torch.cat([nearest_code(part, centres, search) for part in points.split(chunk)])


def _moved(points: Tensor, centres: Tensor, index: Tensor) -> Tensor:
    """One step of Lloyd's, empty clusters included."""
    counts, sums = sums_by_code(points, index, len(centres))
    means = (sums / counts.clamp(min=1)[:, None]).to(points.dtype)
    far_off = (points - centres[index]).square().sum(dim=1)
    farthest = far_off.topk(min(len(centres), len(points))).indices
    is_empty = counts == 0
    # The first empty cluster takes the farthest point, the second the next, and so on.
    turn = (is_empty.cumsum(0) - 1).clamp(0, len(farthest) - 1)
    return torch.where(is_empty[:, None], points[farthest[turn]], means)
