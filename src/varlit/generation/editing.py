"""Zero-shot editing: some tokens of a picture are known, the sampling loop draws the others.

A mask becomes a constraint on the tokens of every scale, which `Sampler.steps` obeys; there is no
second loop. The rule is that of the official notebook (demo_zero_shot_edit.ipynb, cell 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.vqvae import VQVAE
from varlit.ops.scales import Scales

MAX_PIXEL = 1.5  # of what should lie in -1..1; bicubic resizing goes a little beyond


@dataclass(frozen=True)
class KnownTokens:
    """Tokens that are given, and where."""

    tokens: Tensor  # (B, L) int64
    is_known: Tensor  # (B, L) bool; where it is False, `tokens` is ignored

    def __post_init__(self) -> None:
        if self.tokens.shape != self.is_known.shape:
            raise UserError(
                f"known tokens and their mask must have one shape (B, L); got "
                f"{list(self.tokens.shape)} and {list(self.is_known.shape)}"
            )

    def rows(self, part: slice) -> KnownTokens:
        """The same for some of the images."""
        return KnownTokens(self.tokens[part], self.is_known[part])

    def at(self, drawn: Tensor, part: slice) -> Tensor:
        """Put what is known in the place of what was drawn for this part of L.  # (B, l_k)"""
        return torch.where(self.is_known[:, part], self.tokens[:, part], drawn)


def known_outside(
    tokenizer: VQVAE, images: Tensor, mask: Tensor, batch_size: int = 16
) -> KnownTokens:
    """Know the tokens of images wherever their mask does not ask for something new.

    Args:
        tokenizer: Of the VAR that will draw.
        images: (B, 3, H, W) in [-1, 1].
        mask: True (or above 0.5) where the picture is drawn anew; (H, W) or (B, H, W) in pixels,
            or (h, w) or (B, h, w) in cells of the latent map.
        batch_size: Images encoded at a time.

    Raises:
        UserError: If the mask fits neither the images nor their latent maps.
    """
    cells = latent_mask(mask, len(images), tokenizer).to(images.device)
    tokens = torch.cat([tokenizer.encode(part) for part in images.split(batch_size)])
    return KnownTokens(tokens, known_at_scales(~cells, tokenizer.scales))


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images in [-1, 1], a slight overshoot of resizing apart.

    Raises:
        UserError: If it has another shape or type, holds nothing, or has other values.
    """
    if not isinstance(images, Tensor):
        got = type(images).__name__
        raise UserError(f"images must be a tensor (B, 3, H, W) in -1..1; got a {got}")
    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        shape = list(images.shape)
        raise UserError(f"images must have shape (B, 3, H, W), B at least 1; got {shape}")
    if not images.is_floating_point() or not images.abs().max() <= MAX_PIXEL:
        raise UserError(
            f"images must be floats in -1..1; got {images.dtype} in {images.min():g}.."
            f"{images.max():g}. Bytes become it by: images.float() / 127.5 - 1"
        )


def known_scales(tokens: Tensor, scales: Scales, num_scales: int) -> KnownTokens:
    """Know the first `num_scales` maps of pyramids (B, L) whole: draw the finer ones anew."""
    return KnownTokens(tokens, (scales.levels(tokens.device) < num_scales).expand_as(tokens))


def latent_mask(mask: Tensor, batch_size: int, tokenizer: VQVAE) -> Tensor:
    """Cells of the latent map that are drawn anew: those that touch the mask.

    Args:
        mask: As in `known_outside`.
        batch_size: B; a mask without a batch serves all images.
        tokenizer: Gives the sides H = W and h = w.

    Returns:
        (B, h, w) bool.

    Raises:
        UserError: If the mask is of another size.
    """
    if not isinstance(mask, Tensor):
        got = type(mask).__name__
        raise UserError(f"the mask must be a tensor; got a {got}. torch.as_tensor(mask) makes one")
    side, size = tokenizer.scales.final_side, tokenizer.config.image_size
    fits = mask.dim() in (2, 3) and tuple(mask.shape[-2:]) in ((size, size), (side, side))
    if not fits or (mask.dim() == 3 and len(mask) not in (1, batch_size)):
        raise UserError(
            f"the mask must be {size}x{size} px or {side}x{side} cells, for all images or one "
            f"each of {batch_size}; got shape {list(mask.shape)}"
        )
    wanted = mask.expand(batch_size, *mask.shape[-2:]) > 0.5
    return F.adaptive_max_pool2d(wanted.float(), side).bool()


def known_at_scales(known: Tensor, scales: Scales) -> Tensor:
    """Which tokens of every scale a map of known cells fixes.

    A token is known where the map, resized to its scale, is above one half; the 1x1 map is always
    known, since it says what the whole picture is about (both after the official notebook).

    Args:
        known: (B, h, w) bool.
        scales: The schedule.

    Returns:
        (B, L) bool.
    """
    cells, maps = known.unsqueeze(1).float(), []
    for side in scales.sides:
        if side == 1:
            maps.append(torch.ones(len(known), 1, dtype=torch.bool, device=known.device))
            continue
        resized = F.interpolate(cells, size=(side, side), mode="bilinear", align_corners=False)
        maps.append((resized > 0.5).flatten(1))
    return scales.merge(maps)
