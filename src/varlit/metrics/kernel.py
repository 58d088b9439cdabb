"""KID: the squared maximum mean discrepancy under a cubic kernel, over random subsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.metrics.ranks import place_among_ranks, sum_over_ranks

NUM_SUBSETS, SUBSET_SIZE = 100, 1000
SEED = 2020  # torch-fidelity's


@dataclass(frozen=True)
class KernelDistance:
    """Mean and deviation over the subsets; unbiased, so it may be a little below 0."""

    mean: float
    std: float
    num_subsets: int
    subset_size: int


def kernel_distance(
    fake: Tensor,
    real: Tensor,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
    device: torch.device | str = "cpu",
) -> KernelDistance:
    """KID of Binkowski et al. 2018, with the kernel (x.y / D + 1)^3.

    Subsets are drawn as torch-fidelity draws them; the sums are in float64, where torch-fidelity
    takes float32. With several processes each measures some of the subsets, and all must call it
    with the same features.

    Args:
        fake: Features (N, D).
        real: Features (M, D).
        num_subsets: How many subsets.
        subset_size: Images in each, of either kind.
        seed: Of the draw.
        device: Where to compute.

    Raises:
        UserError: If there are fewer images than a subset needs.
    """
    if min(len(fake), len(real)) < subset_size or subset_size < 2:
        raise UserError(
            f"KID over subsets of {subset_size} needs as many images on both sides, and at least "
            f"2; got {len(fake)} generated and {len(real)} real"
        )
    device = double_device(device)
    draw, (rank, world_size) = np.random.RandomState(seed), place_among_ranks()
    found = torch.zeros(num_subsets, dtype=torch.float64)
    for i in range(num_subsets):
        # Every process draws all, so that subset i is the same on any number of them.
        picks = [draw.choice(len(rows), subset_size, replace=False) for rows in (fake, real)]
        if i % world_size == rank:
            x, y = (
                rows[torch.from_numpy(pick)].to(device, torch.float64)
                for rows, pick in zip((fake, real), picks, strict=True)
            )
            found[i] = _squared_discrepancy(x, y)
    found = sum_over_ranks(found)
    if not bool(found.isfinite().all()):
        raise UserError("the features are not all finite; do the images hold NaN?")
    return KernelDistance(
        float(found.mean()), float(found.std(correction=0)), num_subsets, subset_size
    )


def double_device(device: torch.device | str) -> torch.device:
    """The device, or the CPU in place of one that has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def _squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate, Gretton et al. 2012, lemma 6."""
    n = len(x)
    within = [_kernel(z, z) for z in (x, y)]
    inner = sum(float(k.sum() - k.trace()) for k in within) / (n * (n - 1))
    return inner - 2 * float(_kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
