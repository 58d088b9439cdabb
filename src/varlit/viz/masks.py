"""Masks on pictures: what is drawn anew is hatched; and the sheet that shows an edit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from varlit.viz.grids import magnification, tile_grid, to_uint8, upscale
from varlit.viz.style import ACCENT, MARGIN_PX, PAPER

HATCH_PX = 10
"""From one stripe to the next, measured along a row."""
STRIPE_PX = 2
EDIT_TILE_PX = 192
MAX_SHEET_PX = 1200
"""Two tiles stand beside each other in this width, as far as whole factors allow."""


def hatched(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay diagonal stripes over a part of a picture, and a line around it.

    Args:
        picture: (H, W, 3) uint8.
        mask: (H, W) bool, True where it is hatched.

    Returns:
        (H, W, 3) uint8.
    """
    y, x = np.indices(mask.shape)
    is_stripe = np.asarray((x + y) % HATCH_PX < STRIPE_PX)
    # The picture stays visible under the hatch: half of it is paper.
    veiled = (picture.astype(np.uint16) + np.asarray(PAPER, np.uint16)) // 2
    inked = np.where(is_stripe[..., None], np.asarray(ACCENT, np.uint16), veiled)
    inked = np.where(edge(mask)[..., None], np.asarray(ACCENT, np.uint16), inked)
    return np.where(mask[..., None], inked, picture).astype(np.uint8)


def edge(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask (H, W) that has neighbours outside it."""
    inside = np.pad(mask, 1, mode="edge")
    kept = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.asarray(mask & ~kept)


def edit_sheet(
    original: Tensor,
    mask: Tensor,
    variants: Tensor,
    *,
    labels: Sequence[str] = (),
    title: str = "",
    caption: str = "",
    tile_px: int = EDIT_TILE_PX,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """An original, the mask on it, and what was drawn, side by side and then below each other.

    Args:
        original: (3, H, W) in [-1, 1].
        mask: (H, W), True or above 0.5 where it was drawn anew.
        variants: (N, 3, H, W) in [-1, 1].
        labels: Under each variant, none or N.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        tile_px: Size that the shorter side is brought near to, by an integer factor.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.
    """
    factor = max(
        1, min(magnification(min(mask.shape), tile_px), MAX_SHEET_PX // 2 // mask.shape[1])
    )
    pictures = [upscale(picture, factor) for picture in to_uint8(variants)]
    own = upscale(to_uint8(original.unsqueeze(0))[0], factor)
    wanted = (mask > 0.5).cpu().numpy().repeat(factor, 0).repeat(factor, 1)
    tiles = [own, hatched(own, wanted), *pictures]
    names = ["original", "drawn anew", *(labels or [""] * len(pictures))]
    columns = max(2, min(len(tiles), MAX_SHEET_PX // own.shape[1]))
    starts = range(0, len(tiles), columns)
    return tile_grid(
        [tiles[start : start + columns] for start in starts],
        tile_labels=[names[start : start + columns] for start in starts],
        title=title,
        caption=caption,
        tile_px=1,
        margin_px=margin_px,
    )
