"""`varlit edit`: the photo, and the part of it that is drawn anew, from flags and files."""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

SIDES = ("left", "right", "top", "bottom")
RATIO = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")
MAX_RATIO = 16


@dataclass(frozen=True)
class Photo:
    """A photo as the model sees it."""

    pixels: "Tensor"  # (3, h, w) in [-1, 1]
    file_size: tuple[int, int]  # (width, height) of the file, upright
    remark: str = ""


@dataclass(frozen=True)
class Extent:
    """A canvas and where on it the picture lies, in pixels."""

    canvas: tuple[int, int]  # (H, W)
    corner: tuple[int, int]  # (y, x)


def read_photo(path: Path, side_px: int) -> Photo:
    """The centre square of an image file; a smaller image is enlarged.

    Raises:
        UserError: If it is no image that can be read.
    """
    from varlit.cli.photos import read_square
    from varlit.data.decoding import read_rgb

    pixels = read_square(_existing(path, "photo"), side_px)
    width, height = size = read_rgb(path).size
    short = min(size)
    cut = f"its centre, {short}x{short} px" if width != height else "all of it"
    return Photo(pixels, size, f"{path.name}: {width}x{height} px, {cut}, as {side_px}x{side_px}")


def read_whole(path: Path, side_px: int, share: float) -> Photo:
    """All of an image file, its shorter side resized to a share of the model's side.

    Raises:
        UserError: If it is no image that can be read, or becomes too small or too long.
    """
    import numpy as np
    import torch
    from PIL import Image

    from varlit.data.crops import MAX_ASPECT
    from varlit.data.decoding import BrokenImageError, read_rgb

    try:
        image = read_rgb(_existing(path, "photo"))
    except BrokenImageError as error:
        raise UserError(f"{path} does not open as an image ({error})") from None
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UserError(
            f"{path} is {image.width}x{image.height} px, too long to go on a canvas; crop it first"
        )
    factor = side_px * share / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    array = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    remark = f"{path.name}: {image.width}x{image.height} px, as {width}x{height}"
    return Photo(torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1, image.size, remark)


def read_mask(path: Path, photo: Photo) -> "Tensor":
    """A mask file of the photo's own size, cut like the photo: white is drawn anew.

    Returns:
        (S, S) bool.

    Raises:
        UserError: If it cannot be read, or has another size than the photo.
    """
    import torch

    from varlit.data.decoding import BrokenImageError, read_rgb

    try:
        image = read_rgb(_existing(path, "mask")).convert("L")
    except BrokenImageError as error:
        raise UserError(f"the mask {path} does not open as an image ({error})") from None
    if image.size != photo.file_size:
        raise UserError(
            f"the mask {path} is {image.width}x{image.height} px and the photo "
            f"{photo.file_size[0]}x{photo.file_size[1]}; make it of the photo's size"
        )
    return torch.from_numpy(_centre(image, photo.pixels.shape[-1]) > 127)


def box_mask(text: str, side_px: int) -> "Tensor":
    """A box `left,top,right,bottom` in shares of the square that the model sees.

    Returns:
        (S, S) bool, True inside: pixels of which the greater part lies in the box.

    Raises:
        UserError: If it is no such box.
    """
    import torch

    expected = "expected --box left,top,right,bottom in 0..1, such as 0.1,0.1,0.8,0.8"
    try:
        left, top, right, bottom = (float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--box: got `{text}`, {expected}") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(f"--box: got `{text}`, {expected}, left below right and top below bottom")
    mask = torch.zeros(side_px, side_px, dtype=torch.bool)
    x0, y0, x1, y1 = (round(share * side_px) for share in (left, top, right, bottom))
    mask[y0:y1, x0:x1] = True
    return mask


def check_mask(is_new: "Tensor") -> "Tensor":
    """Refuse a mask that asks for nothing, and say it when one leaves nothing.

    Raises:
        UserError: If it is True nowhere.
    """
    if not is_new.any():
        raise UserError(
            f"nothing is to be drawn: no pixel of the {len(is_new)} px square that the model sees "
            "is marked. White is drawn anew; of a photo only the centre square is seen"
        )
    if is_new.all():
        warnings.warn(
            "everything is to be drawn: of the photo only its 1x1 map is kept. White is drawn "
            "anew; --invert turns a mask around",
            stacklevel=2,
        )
    return is_new


def is_ratio(text: str) -> bool:
    """Whether a canvas is told by its ratio, such as `16:9`."""
    return RATIO.fullmatch(text) is not None


def extent(text: str, share: float, size: tuple[int, int], side_px: int) -> Extent:
    """The canvas for a picture: grown by `share` of its side beyond some sides, or to a ratio.

    A canvas that would be smaller than the model's side grows to it: beyond the sides that were
    asked for, or evenly where none lies on that axis.

    Args:
        text: `left,right` or others of the four sides, `all`, or a ratio such as `16:9`.
        share: How far beyond each side, in sides of the picture; a ratio does not read it.
        size: (h, w) of the picture.
        side_px: The model's side.

    Raises:
        UserError: If the text is neither, or a number is out of range.
    """
    height, width = size
    ratio = RATIO.fullmatch(text)
    if ratio and min(map(float, ratio.groups())) > 0:
        across = float(ratio[1]) / float(ratio[2])
        if not 1 / MAX_RATIO <= across <= MAX_RATIO:
            raise UserError(f"--outpaint: got `{text}`, expected a ratio up to {MAX_RATIO}:1")
        rows = max(height, width / across, side_px, side_px / across)
        canvas = math.ceil(rows - 1e-6), math.ceil(rows * across - 1e-6)
        return Extent(canvas, ((canvas[0] - height) // 2, (canvas[1] - width) // 2))
    wanted = SIDES if text == "all" else tuple(word.strip() for word in text.split(","))
    if unknown := [word for word in wanted if word not in SIDES]:
        raise UserError(
            f"--outpaint: got `{unknown[0]}`, expected some of {', '.join(SIDES)}, or all, or a "
            "ratio such as 16:9"
        )
    if not 0 < share <= 8:
        raise UserError(f"--extend must lie above 0 and up to 8; got {share}")
    add = {side: round(share * (width if side in SIDES[:2] else height)) for side in wanted}
    top, rows = _along(height, add.get("top", 0), add.get("bottom", 0), side_px)
    left, columns = _along(width, add.get("left", 0), add.get("right", 0), side_px)
    return Extent((rows, columns), (top, left))


def _along(length: int, before: int, after: int, side_px: int) -> tuple[int, int]:
    """Where a picture begins on one axis of its canvas, and how long that is."""
    lacking = max(0, side_px - (before + length + after))
    if bool(before) == bool(after):
        before += lacking // 2
    elif before:
        before += lacking
    return before, max(side_px, before + length + after)


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise UserError(f"there is no {what} {path}")
    return path


def _centre(image: "Image", side_px: int) -> "np.ndarray":
    """What `read_square` shows of an image, by nearest neighbour.  # (S, S) uint8"""
    import numpy as np
    from PIL import Image

    from varlit.data.crops import SquareCrop

    crop = SquareCrop(side_px, resize_ratio=1.0, horizontal_flip=False, seed=0)
    width, height = crop.resized(*image.size)
    x, y = image.width / width, image.height / height
    left, top = round((width - side_px) / 2) * x, round((height - side_px) / 2) * y
    # Rounding may put the far corner beyond the image, which Pillow refuses.
    right, bottom = left + side_px * x, top + side_px * y
    box = (left, top, min(right, image.width), min(bottom, image.height))
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.NEAREST, box=box))
