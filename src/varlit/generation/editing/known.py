"""Zero-shot editing: some tokens of a picture are known, the sampling loop draws the others.

A mask becomes a constraint on the tokens of every scale, which `Sampler.steps` obeys; there is no
second loop. The rule is that of the official notebook (demo_zero_shot_edit.ipynb, cell 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.vqvae import VQVAE
from varlit.ops.blending import fill_from_around
from varlit.ops.quantize import strict_fp32
from varlit.ops.scales import Scales
from varlit.ops.steps import Steps

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

    @property
    def is_fixed(self) -> bool:
        """Whether the tokens are those, whatever is drawn beside them."""
        return True

    def rows(self, which: slice | Tensor) -> Self:
        """The same for some of the images, by their places."""
        return replace(self, tokens=self.tokens[which], is_known=self.is_known[which])

    def at(self, drawn: Tensor, part: slice, f_hat: Tensor | None = None) -> Tensor:
        """Put what is known in the place of what was drawn.

        Args:
            drawn: (B, l_k).
            part: Where in L they belong.
            f_hat: The latent map (B, C, h, w) as it is by then, for those who correct it.

        Returns:
            (B, l_k).
        """
        return torch.where(self.is_known[:, part], self.tokens[:, part], drawn)


@dataclass(frozen=True)
class RefittedTokens(KnownTokens):
    """Known tokens that are looked up anew at each scale, beside what was drawn by then.

    Tokens are residuals: those of the image are right only on top of its own coarse maps. Where
    coarser tokens were drawn, these correct what known places came to be.
    """

    features: Tensor  # (B, C, h, w), what the encoder made of the images
    quantizer: MultiScaleQuantizer

    @property
    def is_fixed(self) -> bool:
        """They are found while drawing."""
        return False

    def rows(self, which: slice | Tensor) -> Self:
        """The same for some of the images, by their places."""
        return replace(super().rows(which), features=self.features[which])

    def at(self, drawn: Tensor, part: slice, f_hat: Tensor | None = None) -> Tensor:
        """As `KnownTokens.at`, for whole token maps."""
        assert f_hat is not None
        k = self.quantizer.scales.offsets.index(part.start)
        with strict_fp32(f_hat.device):
            fitting = self.quantizer.search_codes(self.features - f_hat, k)
        return torch.where(self.is_known[:, part], fitting, drawn)


def known_outside(
    tokenizer: VQVAE,
    images: Tensor,
    mask: Tensor,
    batch_size: int = 16,
    free_first_scale: bool = False,
    hide_masked: bool = False,
    refit_known: bool = False,
) -> KnownTokens:
    """Know the tokens of images wherever their mask does not ask for something new.

    A token stands for a patch of the picture, the larger the coarser its map: what is masked has
    a say in the known tokens of coarse maps, unless it is hidden.

    Args:
        tokenizer: Of the VAR that will draw.
        images: (B, 3, H, W) in [-1, 1].
        mask: True (or above 0.5) where the picture is drawn anew; (H, W) or (B, H, W) in pixels,
            or (h, w) or (B, h, w) in cells of the latent map.
        batch_size: Images encoded at a time.
        free_first_scale: Draw a 1x1 map anew too.
        hide_masked: Encode what is masked as a smooth continuation of what is around it.
        refit_known: Look known tokens up again while drawing, see `RefittedTokens`.

    Raises:
        UserError: If the mask fits neither the images nor their latent maps.
    """
    cells = latent_mask(mask, len(images), tokenizer).to(images.device)
    if hide_masked:
        images = fill_from_around(images, pixel_mask(mask, len(images), tokenizer).to(cells.device))
    is_known = known_at_scales(~cells, tokenizer.scales, free_first_scale)
    parts = images.split(batch_size)
    tokens = torch.cat([tokenizer.encode(part) for part in parts])
    # On top of no coarser map, a token is what it was.
    if not refit_known or tokenizer.scales.num_scales == 1:
        return KnownTokens(tokens, is_known)
    with torch.no_grad(), strict_fp32(images.device):
        features = torch.cat([tokenizer.features(part.float()) for part in parts])
    return RefittedTokens(tokens, is_known, features, tokenizer.quantizer)


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


def known_scales(tokens: Tensor, steps: Steps, num_steps: int) -> KnownTokens:
    """Know the first maps of pyramids (B, L) whole, or the first tokens of a raster scan."""
    return KnownTokens(tokens, (steps.levels(tokens.device) < num_steps).expand_as(tokens))


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
    wanted = check_mask(mask, batch_size, tokenizer)
    return F.adaptive_max_pool2d(wanted.float(), tokenizer.scales.final_side).bool()


def pixel_mask(mask: Tensor, batch_size: int, tokenizer: VQVAE) -> Tensor:
    """Pixels that are drawn anew: the mask itself, or the pixels of its cells.

    The arguments and errors are those of `latent_mask`.

    Returns:
        (B, H, W) bool.
    """
    wanted = check_mask(mask, batch_size, tokenizer)
    factor = tokenizer.config.image_size // wanted.shape[-1]
    return wanted.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def check_mask(mask: Tensor, batch_size: int, tokenizer: VQVAE) -> Tensor:
    """A mask for each image.

    The arguments are those of `latent_mask`.

    Returns:
        (B, H, W) or (B, h, w) bool.

    Raises:
        UserError: If it is no tensor, of another size, or has values that are no numbers.
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
    if mask.is_complex() or not mask.isfinite().all():
        raise UserError("the mask must be bool or numbers in 0..1; got values that are none (NaN)")
    return mask.expand(batch_size, *mask.shape[-2:]) > 0.5


def known_at_scales(known: Tensor, scales: Scales, free_first_scale: bool = False) -> Tensor:
    """Which tokens of every scale a map of known cells fixes.

    A token is known where the map, resized to its scale, is above one half; a 1x1 map is known
    whatever the mask, since it says what the whole picture is about (both after the official
    notebook).

    Args:
        known: (B, h, w) bool.
        scales: The schedule.
        free_first_scale: Know a 1x1 map only where everything is known.

    Returns:
        (B, L) bool.
    """
    cells, maps = known.unsqueeze(1).float(), []
    for side in scales.sides:
        if side == 1:
            whole = known.flatten(1).all(1, keepdim=True)
            maps.append(whole if free_first_scale else torch.ones_like(whole))
            continue
        resized = F.interpolate(cells, size=(side, side), mode="bilinear", align_corners=False)
        maps.append((resized > 0.5).flatten(1))
    return scales.merge(maps)
