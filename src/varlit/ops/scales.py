"""The schedule of token maps, asked by everything that walks scales.

A token pyramid is an integer tensor (B, L): the K token maps, coarse to fine, each row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.ops.steps import Steps

# By the side of the images in pixels, at stride 16.
OFFICIAL_SCALES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
MAX_SIDE, MAX_SCALES = 1024, 256
# The official choice of phi for ten scales and four convolutions is decided by floating-point
# ties at scales 2 and 7 (numpy float64); the table is what the released weights were trained with.
OFFICIAL_PHI_INDEX = {(10, 4): (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)}


@dataclass(frozen=True)
class Scales(Steps):
    """Sides of the K square token maps, coarse to fine; each is a step of next-scale prediction.

    Called `patch_nums` in the official code: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) for 256 px.

    Raises:
        UserError: If the sides are not positive and strictly growing.

    >>> scales = Scales((1, 2, 3))
    >>> scales.num_tokens, scales.offsets
    (14, (0, 1, 5))
    """

    sides: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            sides = tuple(_whole(side) for side in self.sides)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"scales must be whole numbers, such as [1,2,3,4]; got {self.sides!r:.80}"
            ) from error
        object.__setattr__(self, "sides", sides)
        growing = all(a < b for a, b in pairwise(sides))
        if not sides or sides[0] < 1 or not growing:
            raise UserError(
                f"scales must be positive and grow; got {list(sides)}. "
                "Try for example [1,2,3,4], ending at the side of the latent map."
            )
        if sides[-1] > MAX_SIDE or len(sides) > MAX_SCALES:
            raise UserError(
                f"scales must be at most {MAX_SCALES} and end at most at {MAX_SIDE:,}; got "
                f"{len(sides)} that end at {sides[-1]:,}. Official VAR ends at 64 for 1024 px."
            )

    @property
    def num_scales(self) -> int:
        """K, the number of token maps."""
        return len(self.sides)

    @property
    def final_side(self) -> int:
        """Side of the finest token map, equal to the side of the latent map."""
        return self.sides[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each map."""
        return tuple(side * side for side in self.sides)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Labels that sort in reading order, such as `04x04`."""
        return tuple(f"{side:02d}x{side:02d}" for side in self.sides)

    @property
    def frame_steps(self) -> tuple[int, ...]:
        """A picture after every map."""
        return tuple(range(self.num_scales))

    @property
    def frame_names(self) -> tuple[str, ...]:
        """As `names`."""
        return self.names

    def split(self, pyramid: Tensor) -> list[Tensor]:
        """Cut (B, L, ...) into K tensors (B, l_k, ...)."""
        self._check_length(pyramid)
        return list(pyramid.split(self.lengths, dim=1))

    def maps(self, tokens: Tensor) -> list[Tensor]:
        """Cut (B, L) into K square maps (B, h_k, w_k)."""
        parts = zip(self.split(tokens), self.sides, strict=True)
        return [part.unflatten(1, (side, side)) for part, side in parts]

    def merge(self, maps: Sequence[Tensor]) -> Tensor:
        """Join K maps, (B, h_k, w_k) or (B, l_k), to the flat pyramid (B, L)."""
        tokens = torch.cat([part.flatten(1) for part in maps], dim=1)
        self._check_length(tokens)
        return tokens

    def phi_index(self, num_phi: int) -> tuple[int, ...]:
        """Which of `num_phi` partially shared phi convolutions serves each scale.

        `num_phi` 0 means one convolution per scale. Scale k sits at k / (K - 1) and takes the
        convolution whose tick is nearest; ties follow the official code (numpy float64).
        """
        if num_phi == 0:
            return tuple(range(self.num_scales))
        if (self.num_scales, num_phi) in OFFICIAL_PHI_INDEX:
            return OFFICIAL_PHI_INDEX[self.num_scales, num_phi]
        if num_phi == 1 or self.num_scales == 1:
            return (0,) * self.num_scales
        margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
        # The same roundings as numpy's linspace, so that ties fall as in the official code.
        spacing = ((1 - margin) - margin) / (num_phi - 1)
        ticks = [i * spacing + margin for i in range(num_phi - 1)] + [1 - margin]
        places = [k / (self.num_scales - 1) for k in range(self.num_scales)]
        return tuple(
            min(range(num_phi), key=lambda i, at=at: abs(ticks[i] - at))  # type: ignore[misc]
            for at in places
        )

    def _check_length(self, pyramid: Tensor) -> None:
        if pyramid.shape[1] != self.num_tokens:
            raise UserError(
                f"a pyramid of scales {list(self.sides)} has {self.num_tokens} tokens; "
                f"got {pyramid.shape[1]}. Was it made by a tokenizer with other scales?"
            )


def _whole(side: Any) -> int:
    """A side as an int; numpy's, torch's and 2.0 pass.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is no number.
        OverflowError: If it is infinite.
    """
    if isinstance(side, bool | str) or int(side) != side:
        raise TypeError("no whole number")
    return int(side)
