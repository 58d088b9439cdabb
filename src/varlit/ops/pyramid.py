"""Resizing between the token maps and the latent map, as in VAR Algorithms 1 and 2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def shrink(f: Tensor, side: int) -> Tensor:
    """Average (B, C, h, w) down to (B, C, side, side); the identity at full size."""
    if f.shape[-1] == side:
        return f
    return F.interpolate(f, size=(side, side), mode="area")


def enlarge(f: Tensor, side: int) -> Tensor:
    """Grow (B, C, h, w) to (B, C, side, side), bicubic; the identity at full size."""
    if f.shape[-1] == side:
        return f
    return F.interpolate(f, size=(side, side), mode="bicubic")


def to_sequence(f: Tensor) -> Tensor:
    """Lay a map (B, C, h, w) out row by row.  # (B, h*w, C)"""
    return f.flatten(2).transpose(1, 2)


def to_map(sequence: Tensor, side: int) -> Tensor:
    """Fold a sequence (B, side*side, C) back to a map.  # (B, C, side, side)"""
    return sequence.transpose(1, 2).unflatten(2, (side, side))
