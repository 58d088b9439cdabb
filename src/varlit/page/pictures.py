"""Pictures on the wire: PNG as base64, bounded before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from varlit.data.decoding import BrokenImageError, read_rgb, read_size
from varlit.errors import UserError
from varlit.viz.grids import to_uint8

PNG_START = b"\x89PNG\r\n\x1a\n"
FAST = 3  # zlib's level; a frame lives for a moment on the same machine


def png_texts(images: Tensor) -> list[str]:
    """Images (B, 3, H, W) in [-1, 1], each as the base64 text of a PNG."""
    texts = []
    for pixels in to_uint8(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG", compress_level=FAST)
        texts.append(base64.b64encode(file.getvalue()).decode("ascii"))
    return texts


def read_image(text: object, side_px: int) -> Tensor:
    """A picture that the page sent, (3, H, W) in [-1, 1].

    Raises:
        UserError: If it is no PNG of this side.
    """
    pixels = torch.from_numpy(_read_png(text, side_px, "the picture"))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def read_mask(text: object, side_px: int) -> Tensor:
    """A mask that the page sent: True (white) where the picture is drawn anew, (H, W) bool.

    Raises:
        UserError: If it is no PNG of this side, or marks nothing.
    """
    mask = torch.from_numpy(_read_png(text, side_px, "the mask"))[..., 0] > 127
    if not mask.any():
        raise UserError("the mask is empty; paint over the part that is to be drawn anew")
    return mask


def _read_png(text: object, side_px: int, what: str) -> np.ndarray:
    """Decode the base64 text of a PNG whose size is known beforehand.  # (H, W, 3) uint8"""
    if not isinstance(text, str):
        raise UserError(f"{what} must be the base64 text of a PNG; got {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
        if not data.startswith(PNG_START):
            raise UserError(f"{what} is not a PNG; expected one of {side_px}x{side_px} px")
        # A few hundred bytes may claim a gigapixel: the header is believed before all else.
        if (size := read_size(data)) != (side_px, side_px):
            raise UserError(f"{what} is {size[0]}x{size[1]} px, expected {side_px}x{side_px}")
        return np.array(read_rgb(data))
    except (binascii.Error, ValueError, BrokenImageError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what} does not open as a PNG; load it again") from None
