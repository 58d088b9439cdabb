"""What the discriminator sees in place of plain images: blurred, shifted, recoloured, cut out.

Everything is differentiable in the images, drawn for each image by torch's global generator, and
applied to real and fake images alike; so the generator learns the images, not their distortions.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

AugmentKind = Literal["translation", "color", "cutout"]
AUGMENT_KINDS: tuple[AugmentKind, ...] = ("translation", "color", "cutout")
TRANSLATION = 0.125  # of the side, at most


def augment(
    images: Tensor,
    kinds: tuple[AugmentKind, ...],
    probability: float = 1.0,
    cutout: float = 0.2,
) -> Tensor:
    """Distort images as DiffAugment does (Zhao et al. 2020), in fp32 or better.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        kinds: What to do, in this order.
        probability: Share of the images that each kind is applied to, drawn for each kind.
        cutout: Side of the hole over the image's; 0.5 in the paper, 0.2 in StyleGAN-T and vaex.

    Returns:
        (B, 3, H, W), the input itself where there is nothing to do.
    """
    if not kinds or not probability:
        return images
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    for kind in kinds:
        chosen = torch.rand(len(images), device=images.device) < probability
        if kind == "translation":
            images = _translate(images, chosen)
        elif kind == "color":
            images = _recolor(images, chosen)
        else:
            images = _cut_out(images, chosen, cutout)
    return images


def blur(images: Tensor, strength: float) -> Tensor:
    """Blur images by a Gaussian that is widest at strength 1, in fp32 or better.

    Sauer et al. 2022 (StyleGAN-XL) blur so at the start of training, that the discriminator looks
    at coarse structure first; width as in vaex, exp2(-(x / sigma)^2) with sigma = strength *
    sqrt(H / 2) px.

    Args:
        images: (B, C, H, W).
        strength: In 0..1; at 0, and where the kernel would be one pixel, the input is returned.
    """
    height, width = images.shape[-2:]
    sigma_px = strength * math.sqrt(height / 2)
    radius = min(math.floor(3 * sigma_px), height - 1, width - 1)
    if radius < 1:
        return images
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp2(-((x / sigma_px) ** 2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)  # (C, 1, 2 * radius + 1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    with torch.autocast(images.device.type, enabled=False):
        rows = F.conv2d(padded, kernel[:, :, None], groups=len(kernel))
        return F.conv2d(rows, kernel[..., None], groups=len(kernel))


def _translate(images: Tensor, chosen: Tensor) -> Tensor:
    """Shift each chosen image by up to an eighth of its side; grey (0) moves in."""
    for dim in (2, 3):
        side = images.shape[dim]
        reach = round(side * TRANSLATION)
        shift = torch.randint(-reach, reach + 1, chosen.shape, device=images.device) * chosen
        padding = (0, 0, reach, reach) if dim == 2 else (reach, reach)
        source = torch.arange(side, device=images.device) + reach - shift[:, None]  # (B, side)
        shape = (len(images), 1, -1, 1) if dim == 2 else (len(images), 1, 1, -1)
        # No place is read twice, so the backward pass adds nothing up and stays exact.
        images = F.pad(images, padding).gather(dim, source.view(shape).expand_as(images))
    return images


def _recolor(images: Tensor, chosen: Tensor) -> Tensor:
    """Draw brightness (+-0.5), saturation (0 to 2) and contrast (0.5 to 1.5) of chosen images."""
    noise = torch.rand(3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype) - 0.5
    bright = images + noise[0]
    grey = bright.mean(dim=1, keepdim=True)
    coloured = grey + (bright - grey) * (1 + 2 * noise[1])
    mean = coloured.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(chosen.view(-1, 1, 1, 1), mean + (coloured - mean) * (1 + noise[2]), images)


def _cut_out(images: Tensor, chosen: Tensor, size: float) -> Tensor:
    """Grey out (0) a box of each chosen image; it may stick out of the border."""
    keep = ~chosen.view(-1, 1, 1, 1)
    for dim in (2, 3):
        side = images.shape[dim]
        hole = round(side * size)
        # The middle may be anywhere, so the corners are hit as often as the centre.
        middle = torch.randint(0, side + 1 - hole % 2, chosen.shape, device=images.device)
        places = torch.arange(side, device=images.device)
        start = (middle - hole // 2)[:, None]
        outside = (places < start) | (places >= start + hole)  # (B, side)
        keep = keep | outside.view((-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side))
    return images * keep
