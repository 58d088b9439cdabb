"""PSNR and SSIM of reconstructions, on what a PNG would hold: values rounded to 8 bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.ops.quantize import strict_fp32

# Equal images have an infinite PSNR, which no mean over a set survives.
MAXIMUM_PSNR_DB = 100.0

SSIM_WINDOW_PX = 11

Rounding = Literal["nearest", "down"]


def to_uint8(images: Tensor, rounding: Rounding = "nearest") -> Tensor:
    """Images in [-1, 1] as 8 bits, clamping what lies outside; uint8 passes unchanged.

    Args:
        images: Of any shape.
        rounding: `nearest` loses least, and a PNG that was read comes back as it was. `down` is
            what ADM's sampling script and the demo of VAR do: half a grey level darker.

    Raises:
        UserError: If there is no such rounding.
    """
    if images.dtype == torch.uint8:
        return images
    levels = (images.float() + 1) * 127.5
    if rounding == "nearest":
        levels = levels.round()
    elif rounding != "down":
        raise UserError(f"rounding must be `nearest` or `down`; got {rounding!r}")
    return levels.clamp(0, 255).to(torch.uint8)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, at most 100.

    Args:
        images: (B, 3, H, W) in [-1, 1], or uint8.
        others: As `images`.

    Returns:
        (B,) decibels.
    """
    error = (_rounded(images) - _rounded(others)).square().flatten(1).mean(dim=1)  # (B,)
    return (-10 * error.log10()).clamp(max=MAXIMUM_PSNR_DB)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each pair, with the usual Gaussian window of 11x11.

    Args:
        images: (B, 3, H, W) in [-1, 1], or uint8.
        others: As `images`.

    Returns:
        (B,), at most 1.

    Raises:
        UserError: If a side is below 11 px.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(images.shape[-2:])
    if side < SSIM_WINDOW_PX:
        raise UserError(
            f"SSIM looks through a window of {SSIM_WINDOW_PX} px; got images of {side} px. "
            "Resize them to at least that"
        )
    # Under autocast E[x^2] - E[x]^2 would cancel in bf16.
    with strict_fp32(images.device):
        similarity = structural_similarity_index_measure(
            _rounded(images), _rounded(others), data_range=1.0, reduction="none"
        )
    assert isinstance(similarity, Tensor)
    return similarity


def _rounded(images: Tensor) -> Tensor:
    """Map to [0, 1] in steps of 1 / 255."""
    return to_uint8(images).float() / 255
