"""The square crops that networks see: VAR's for training, VAR's or ADM's for everything else.

VAR's: shorter side to `resize_ratio` times the crop (LANCZOS), then a random crop in training and
the centre otherwise. ADM's (guided-diffusion's `center_crop_arr`): halve by boxes while the
shorter side is at least twice the crop, bicubic to the crop, then the centre; the reference
statistics that papers compare with are made so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from varlit.data.draws import PLAIN_VIEW, draw_below

CentreCrop = Literal["var", "adm"]
MAX_ASPECT = 16
"""From this ratio of sides on, an image is never resized as a whole: it could fill the memory."""


@dataclass(frozen=True)
class SquareCrop:
    """The geometry of a training image; random views are functions of (seed, id, view).

    Attributes:
        image_size: Side of the crop in pixels.
        resize_ratio: The shorter side becomes `image_size * resize_ratio` before the crop.
        horizontal_flip: Mirror half of the random views.
        seed: Seed of the random views.
        centre_crop: Whose centre crop the plain view is.
    """

    image_size: int
    resize_ratio: float
    horizontal_flip: bool
    seed: int
    centre_crop: CentreCrop = "var"

    def __call__(self, image: Image.Image, sample_id: int, view: int) -> np.ndarray:
        """Cut one view of an image: exactly `cut(resize(image))`.

        Args:
            image: RGB, any size.
            sample_id: The image's row in its split.
            view: `PLAIN_VIEW` is the centre crop, unmirrored; any other a random crop.

        Returns:
            (image_size, image_size, 3) uint8.
        """
        is_adm = view == PLAIN_VIEW and self.centre_crop == "adm"
        return self.cut(image, None if is_adm else self.resize(image), sample_id, view)

    def resize(self, image: Image.Image) -> Image.Image | None:
        """Resize an image once for all its views; None where that would be too large."""
        if max(image.size) > MAX_ASPECT * min(image.size):
            return None
        return image.resize(self.resized(*image.size), Image.Resampling.LANCZOS)

    def cut(
        self, image: Image.Image, resized: Image.Image | None, sample_id: int, view: int
    ) -> np.ndarray:
        """Cut one view out of what `resize` made of an image; without it, as `cut_directly`."""
        if view == PLAIN_VIEW and self.centre_crop == "adm":
            return _adm_centre_crop(image, self.image_size)
        if resized is None:
            return self.cut_directly(image, sample_id, view)
        left, top, mirrored = self._place(resized.size, sample_id, view)
        square = resized.crop((left, top, left + self.image_size, top + self.image_size))
        return np.asarray(ImageOps.mirror(square) if mirrored else square)

    def cut_directly(self, image: Image.Image, sample_id: int, view: int) -> np.ndarray:
        """Cut one view by resizing only what it shows.

        The same square as `cut`, but Pillow rounds the corners of a part, and may resize it first
        down and then across: where LANCZOS overshoots black or white, that clips otherwise. How
        little differs on photographs is in docs/your-data.md.
        """
        if view == PLAIN_VIEW and self.centre_crop == "adm":
            return _adm_centre_crop(image, self.image_size)
        width, height = self.resized(*image.size)
        left, top, mirrored = self._place((width, height), sample_id, view)
        x, y, side = image.width / width, image.height / height, self.image_size
        # Rounding may put the far corner beyond the image, which Pillow refuses.
        right, bottom = min((left + side) * x, image.width), min((top + side) * y, image.height)
        box = (left * x, top * y, right, bottom)
        square = image.resize((side, side), Image.Resampling.LANCZOS, box=box)
        return np.asarray(ImageOps.mirror(square) if mirrored else square)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize, as torchvision's Resize rounds them."""
        target = self.resized_px
        if width <= height:
            return target, int(target * height / width)
        return int(target * width / height), target

    @property
    def resized_px(self) -> int:
        """The shorter side after the resize."""
        return max(self.image_size, round(self.image_size * self.resize_ratio))

    def _place(self, size: tuple[int, int], sample_id: int, view: int) -> tuple[int, int, bool]:
        """Return left, top and whether the view is mirrored."""
        spare_x, spare_y = size[0] - self.image_size, size[1] - self.image_size
        if view == PLAIN_VIEW:
            return round(spare_x / 2), round(spare_y / 2), False
        limits = np.array([spare_x + 1, spare_y + 1, 2])
        left, top, coin = draw_below(limits, self.seed, sample_id, view, np.arange(3)).tolist()
        return left, top, self.horizontal_flip and coin == 1


def _adm_centre_crop(image: Image.Image, side: int) -> np.ndarray:
    image = _without_far_ends(image)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = side / min(image.size)
    size = round(image.width * ratio), round(image.height * ratio)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Cut a strip to its middle: resized as a whole it could fill the memory."""
    reach = MAX_ASPECT * min(image.size)
    if max(image.size) <= reach:
        return image
    left, top = max(0, image.width - reach) // 2, max(0, image.height - reach) // 2
    return image.crop((left, top, image.width - left, image.height - top))
