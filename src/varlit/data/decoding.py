"""From an image file to a square crop: every kind of file becomes upright 8-bit RGB.

The crop is the official VAR's: shorter side to `resize_ratio` times the crop (LANCZOS), then a
random crop in training and the centre otherwise.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from varlit.data.draws import PLAIN_VIEW, draw_below

# What Pillow's readers are known to raise on damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error),
    Image.DecompressionBombError,
)


class BrokenImageError(Exception):
    """A file that cannot be read as an image; the text is the reason."""


def read_rgb(path: Path) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    EXIF rotation is applied, of an animation the first frame is taken, transparency is laid on
    white, 16-bit gray is scaled (Pillow's own conversion would clip it to white).

    Raises:
        BrokenImageError: If the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise BrokenImageError(_reason(error)) from error


def read_size(path: Path) -> tuple[int, int]:
    """Read (width, height) from the header alone.

    Raises:
        BrokenImageError: If the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except _DAMAGE as error:
        raise BrokenImageError(_reason(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB."""
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.int64)
        # Pillow reads some 16-bit files as 32-bit "I"; nothing else in it exceeds 255.
        if image.mode != "I" or gray.max(initial=0) > 255:
            gray = gray >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class SquareCrop:
    """The geometry of a training image; random views are functions of (seed, id, view).

    Attributes:
        image_size: Side of the crop in pixels.
        resize_ratio: The shorter side becomes `image_size * resize_ratio` before the crop.
        horizontal_flip: Mirror half of the random views.
        seed: Seed of the random views.
    """

    image_size: int
    resize_ratio: float
    horizontal_flip: bool
    seed: int

    def __call__(self, image: Image.Image, sample_id: int, view: int) -> np.ndarray:
        """Cut one view of an image.

        Args:
            image: RGB, any size.
            sample_id: The image's row in its split.
            view: `PLAIN_VIEW` is the centre crop, unmirrored; any other a random crop.

        Returns:
            (image_size, image_size, 3) uint8.
        """
        image = image.resize(self.resized(*image.size), Image.Resampling.LANCZOS)
        spare_x, spare_y = image.width - self.image_size, image.height - self.image_size
        if view == PLAIN_VIEW:
            left, top, mirrored = round(spare_x / 2), round(spare_y / 2), False
        else:
            limits = np.array([spare_x + 1, spare_y + 1, 2])
            left, top, coin = draw_below(limits, self.seed, sample_id, view, np.arange(3)).tolist()
            mirrored = self.horizontal_flip and coin == 1
        image = image.crop((left, top, left + self.image_size, top + self.image_size))
        if mirrored:
            image = ImageOps.mirror(image)
        return np.asarray(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize, as torchvision's Resize rounds them."""
        target = max(self.image_size, round(self.image_size * self.resize_ratio))
        if width <= height:
            return target, int(target * height / width)
        return int(target * width / height), target


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
