"""Which tokens are predicted together: the one thing in which VAR and raster scan differ.

Masks, caches, embeddings, the sampling loop and the formulas of cost ask nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor


class Steps(ABC):
    """The L tokens of an image, cut into steps; a step sees itself and all steps before it.

    `Scales` makes a step of a token map (next-scale prediction), `RasterScan` of a token.
    """

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each step."""

    @property
    @abstractmethod
    def frame_steps(self) -> tuple[int, ...]:
        """The steps after which a growing picture is worth a look, the last one among them."""

    @property
    @abstractmethod
    def frame_names(self) -> tuple[str, ...]:
        """A label for each of `frame_steps`."""

    @property
    def num_steps(self) -> int:
        """Passes through the transformer to draw an image."""
        return len(self.lengths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of each step's first token."""
        return tuple(sum(self.lengths[:k]) for k in range(self.num_steps))

    @property
    def num_tokens(self) -> int:
        """L, the number of tokens of an image."""
        return sum(self.lengths)

    def token_slice(self, k: int) -> slice:
        """Where the tokens of step k lie."""
        return slice(self.offsets[k], self.offsets[k] + self.lengths[k])

    def levels(self, device: torch.device | str | None = None) -> Tensor:
        """Index of the step that each token belongs to.  # (L,)"""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.repeat_interleave(torch.arange(self.num_steps, device=device), lengths)

    def block_causal_mask(self, device: torch.device | str | None = None) -> Tensor:
        """True where query (row) may attend to key (column): its own step and earlier ones.

        Returns:
            Boolean (L, L). VAR section 3.2, "block-wise causal attention mask".
        """
        levels = self.levels(device)
        return levels[:, None] >= levels[None, :]
