"""Nearest-code search, always in strict fp32.

TF32 changes a token in 40 % of the images and bf16 in all of them, and a token that changes at
one scale changes the residual of every finer one (measured; see docs/design.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F


@contextmanager
def strict_fp32(device: torch.device) -> Iterator[None]:
    """Run without autocast and, on CUDA, without TF32, and restore both afterwards."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        # Set one by one: `cudnn.flags` would switch cuDNN itself off by its default.
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        allowed = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32, cudnn.allow_tf32 = False, False
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = allowed


def nearest_code(z: Tensor, codebook: Tensor, search: str = "euclidean") -> Tensor:
    """Index of the codebook row nearest to each vector.

    Args:
        z: Vectors (N, C), fp32.
        codebook: Codes (V, C), fp32.
        search: `euclidean` (squared distance) or `cosine` (largest cosine similarity).

    Returns:
        Integer tensor (N,); the first of equally near codes.
    """
    if search == "cosine":
        return (F.normalize(z, dim=1) @ F.normalize(codebook, dim=1).T).argmax(dim=1)
    # |z|^2 stays in the sum although it changes no order: rounding then ties as official VAR's.
    distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1)
    distance.addmm_(z, codebook.T, alpha=-2, beta=1)  # (N, V)
    return distance.argmin(dim=1)
