"""Start from given coarse scales: the same picture from afar, in other details.

The first token maps are known, the sampling loop draws the finer ones. What is known is fed to the
transformer scale by scale like what is drawn: one pass over all of it would save little, for the
coarse maps hold few tokens, and would round otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.editing.known import KnownTokens, known_scales
from varlit.models.var import VAR


def known_coarse(
    var: VAR, tokens: Tensor | None, keep_scales: int, num_images: int
) -> KnownTokens | None:
    """Know the first maps of each image to draw, so that only the finer ones are drawn.

    Args:
        var: That will draw.
        tokens: Pyramids (B, L) of its tokenizer, one for each image; or one, (1, L) or (L,), that
            all images start from. None to start from nothing.
        keep_scales: How many of the maps to keep, 1..K - 1; 0 without tokens.
        num_images: B.

    Returns:
        None where nothing is given.

    Raises:
        UserError: If the tokens are no such pyramids, or there are not so many maps.
    """
    if tokens is None:
        if keep_scales:
            raise UserError(
                f"keep_scales {keep_scales} keeps the first maps of coarse_tokens; give both"
            )
        return None
    check_keep_scales(var, keep_scales)
    pyramids = _checked(var, tokens, num_images).to(var.device)
    return known_scales(pyramids.expand(num_images, -1), var.scales, keep_scales)


def check_keep_scales(var: VAR, keep_scales: int) -> None:
    """Refuse a number of maps that leaves nothing known or nothing to draw.

    Raises:
        UserError: If it is no whole number in 1..K - 1, or this VAR has a single scale.
    """
    num_scales = var.scales.num_scales
    if num_scales < 2:
        raise UserError("this VAR has a single scale, so there is no coarse picture to start from")
    is_whole = isinstance(keep_scales, int) and not isinstance(keep_scales, bool)
    if not is_whole or not 1 <= keep_scales < num_scales:
        sides = ", ".join(str(side) for side in var.scales.sides)
        raise UserError(
            f"keep_scales must lie in 1..{num_scales - 1} (the scales are {sides}; the rest is "
            f"drawn); got {keep_scales}"
        )


def _checked(var: VAR, tokens: Tensor, num_images: int) -> Tensor:
    """The tokens as (B, L) or (1, L).

    Raises:
        UserError: If they are none.
    """
    length, num_codes = var.scales.num_tokens, var.tokenizer_config.codebook_size
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise UserError(f"coarse_tokens must be what tokenizer.encode(images) gives; got {got}")
    pyramids = tokens.unsqueeze(0) if tokens.dim() == 1 else tokens
    if pyramids.dim() != 2 or pyramids.shape[1] != length or len(pyramids) not in (1, num_images):
        raise UserError(
            f"coarse_tokens must be (1, {length}) for all images, or ({num_images}, {length}) for "
            f"one each; got {list(tokens.shape)}"
        )
    lowest, highest = (int(end) for end in torch.aminmax(pyramids))
    if lowest < 0 or highest >= num_codes:
        raise UserError(
            f"coarse_tokens must lie in 0..{num_codes - 1}, the codes of this VAR's tokenizer; got "
            f"{lowest}..{highest}"
        )
    return pyramids.long()
