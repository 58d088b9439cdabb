"""Drawing fast on a CPU: the weights are laid out once for the matrix products of all steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from varlit.generation.editing.known import KnownTokens
from varlit.generation.random_numbers import RandomNumbers
from varlit.generation.sampler import DrawnScale, Sampler, SamplingSettings
from varlit.models.drawing_copy import autocast_dtype, packed_copy
from varlit.models.packed_linear import can_pack
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE


class PackedSampler(Sampler):
    """Draws as `Sampler` does but for roundings; under autocast, which casts products, just so.

    Weights are packed when the first batch is drawn: make a new one after training on.

    Args:
        var: Draws; in fp32 on the CPU.
        tokenizer: Decodes.
    """

    def __init__(self, var: VAR, tokenizer: VQVAE) -> None:
        super().__init__(var, tokenizer)
        self._packed: Sampler | None = None

    @property
    def is_packed(self) -> bool:
        """Whether a batch that is drawn here and now is drawn by packed weights."""
        return autocast_dtype(self.var.device) is None

    def steps(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: RandomNumbers = None,
        known: KnownTokens | None = None,
    ) -> Iterator[DrawnScale]:
        """As `Sampler.steps`."""
        if not self.is_packed:
            return super().steps(labels, settings, random, known)
        if self._packed is None:
            self._packed = Sampler(packed_copy(self.var), self.tokenizer)
        return self._packed.steps(labels, settings, random, known)


def open_stepwise(var: VAR, tokenizer: VQVAE, dtype: torch.dtype | None = None) -> Sampler:
    """The sampler for whoever looks at each step: no CUDA graph, packed weights where they can be.

    Args:
        var: Draws.
        tokenizer: Decodes.
        dtype: Of matrix products; None = that of the autocast around each draw, or fp32.
    """
    if dtype is None and can_pack(var):
        return PackedSampler(var, tokenizer)
    return Sampler(var, tokenizer, dtype)
