"""How much of the codebook each scale uses, against what it could use at all."""

from __future__ import annotations

import torch
from torch import Tensor

from varlit.ops.scales import Scales


def code_counts(tokens: Tensor, scales: Scales, codebook_size: int) -> Tensor:
    """Histogram of codes at each scale of pyramids (B, L).  # (K, V) int64"""
    index = scales.levels(tokens.device) * codebook_size + tokens  # (B, L)
    flat = torch.bincount(index.flatten(), minlength=scales.num_scales * codebook_size)
    return flat.view(scales.num_scales, codebook_size)


def code_usage(counts: Tensor) -> Tensor:
    """Share of the codes that were hit at least once, of counts (..., V).  # (...,)"""
    return (counts > 0).float().mean(dim=-1)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the code distribution, of counts (..., V): 1 = one code.  # (...,)"""
    share = counts.double() / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum(dim=-1).exp().float()


def attainable_usage(scales: Scales, num_images: int, codebook_size: int) -> Tensor:
    """Largest possible usage of each scale: N images yield N * h_k * w_k tokens.  # (K,)

    The 1x1 map of a few images cannot hit every code; without this bound it looks collapsed.
    """
    drawn = torch.tensor(scales.lengths, dtype=torch.float64) * num_images
    return (drawn.clamp(max=codebook_size) / codebook_size).float()
