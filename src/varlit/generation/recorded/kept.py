"""The sampler of a model's last call, kept for the next one.

A CUDA graph and a copy of the weights in half precision are worth their making when they are used
again: by the next call, or by the next window of a canvas.
"""

from __future__ import annotations

import torch

from varlit.generation.editing.known import KnownTokens
from varlit.generation.recorded.compiled import (
    COMPILE_FROM_IMAGES,
    FastSampler,
    hindrance,
    open_sampler,
)
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.models.drawing_copy import autocast_dtype
from varlit.models.packed_linear import can_pack
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.models.weight_versions import weight_versions


class KeptSampler:
    """One sampler, for as long as the same is asked for of the same weights."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._sampler: Sampler | None = None

    def __reduce__(self) -> tuple[type[KeptSampler], tuple[()]]:
        """A copy of a model, and its pickle, start with nothing kept."""
        return KeptSampler, ()

    def open(
        self, var: VAR, tokenizer: VQVAE, dtype: torch.dtype | None, num_images: int
    ) -> Sampler:
        """The sampler of `open_sampler`, made anew only where something is another.

        Args:
            var: Draws.
            tokenizer: Decodes.
            dtype: Of matrix products; None = that of the autocast around this call, or fp32.
            num_images: How many will be drawn.
        """
        dtype = autocast_dtype(var.device) if dtype is None else dtype
        if dtype is None and var.device.type != "cuda" and not can_pack(var):
            return Sampler(var, tokenizer)  # there is nothing to keep
        is_long = num_images >= COMPILE_FROM_IMAGES
        networks = (id(var), weight_versions(var), id(tokenizer), weight_versions(tokenizer))
        key = (var.device, dtype, is_long, *networks)
        if self._sampler is None or key != self._key:
            self._sampler = None  # its memory goes first
            self._sampler = open_sampler(var, tokenizer, dtype=dtype, num_images=num_images)
            self._key = key
        return self._sampler


def suited(
    sampler: Sampler, settings: SamplingSettings, has_seeds: bool, known: KnownTokens | None
) -> Sampler:
    """The sampler, or the plain one in it for what no graph can draw: nobody asked for a graph."""
    if isinstance(sampler, FastSampler) and hindrance(sampler.var, settings, has_seeds, known):
        return sampler.plain()
    return sampler
