"""Photos that are named on the command line, as networks see them."""

from pathlib import Path
from typing import TYPE_CHECKING

from varlit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def read_square(path: Path, image_size_px: int) -> "Tensor":
    """The centre of an image file as (3, H, W) in [-1, 1]; a smaller image is enlarged.

    Raises:
        UserError: If it is no image that can be read.
    """
    import torch

    from varlit.data.crops import SquareCrop
    from varlit.data.decoding import BrokenImageError, read_rgb
    from varlit.data.draws import PLAIN_VIEW

    crop = SquareCrop(image_size_px, resize_ratio=1.0, horizontal_flip=False, seed=0)
    try:
        pixels = crop(read_rgb(path), sample_id=0, view=PLAIN_VIEW)
    except BrokenImageError as error:
        raise UserError(f"{path} does not open as an image ({error})") from None
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1
