"""Pixels of two pictures in one: soft edges, pasting, and filling a hole from around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def feather(mask: Tensor, width_px: int) -> Tensor:
    """Give a mask a ramp outside its edge, so that what lies inside stays wholly inside.

    Args:
        mask: (B, H, W) bool.
        width_px: Pixels of the ramp; 0 leaves the edge hard.

    Returns:
        (B, 1, H, W) float: 1 in the mask, 0 from `width_px` + 1 on (in the larger of |dx|, |dy|).
    """
    grown = mask.unsqueeze(1).float()
    total = grown
    for _ in range(width_px):
        grown = F.max_pool2d(grown, kernel_size=3, stride=1, padding=1)
        total = total + grown
    return total / (width_px + 1)


def paste(over: Tensor, under: Tensor, mask: Tensor, feather_px: int = 0) -> Tensor:
    """Lay one picture over another where a mask says so.

    Args:
        over: (B, 3, H, W); it alone is seen in the mask.
        under: (B, 3, H, W); bit for bit what is seen beyond the feather.
        mask: (B, H, W) bool.
        feather_px: Width of the ramp between them, outside the mask.
    """
    weight = feather(mask, feather_px)
    mixed = torch.lerp(under, over, weight)
    # Spelled out, not left to lerp: some of its kernels are exact at one end only.
    return torch.where(weight == 0, under, torch.where(weight == 1, over, mixed))


def fill_from_around(images: Tensor, is_missing: Tensor) -> Tensor:
    """Fill holes smoothly from their surroundings: average what is known down, then bring it up.

    The push-pull of Gortler et al. 1996 (The Lumigraph), section 3.3, in its simplest form.

    Args:
        images: (B, 3, H, W); what is missing is not looked at.
        is_missing: (B, H, W) bool.

    Returns:
        (B, 3, H, W); where nothing at all is known, grey (0).
    """
    return _filled(images, (~is_missing).unsqueeze(1).to(images.dtype))


def _filled(images: Tensor, known: Tensor) -> Tensor:
    """As `fill_from_around`, with how much of a place is known, (B, 1, h, w) in 0..1."""
    height, width = images.shape[-2:]
    seen = torch.where(known > 0, images, 0)
    if height == width == 1:
        return seen
    half = (height + 1) // 2, (width + 1) // 2
    share = F.adaptive_avg_pool2d(known, half)
    mean = F.adaptive_avg_pool2d(seen * known, half) / share.clamp_min(1e-8)
    coarse = _filled(mean, (share > 0).to(images.dtype))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, seen, smooth)
