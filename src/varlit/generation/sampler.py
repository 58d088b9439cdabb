"""The sampling loop: an iterator over scales, used by sampling, pictures and evaluation.

It yields what it drew at each scale, so that whoever drives it can watch a picture grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.filtering import (
    GUIDANCE_KINDS,
    draw,
    draw_at,
    filter_logits,
    guidance_strength,
    guide,
)


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn; the defaults are those of official VAR's evaluation."""

    cfg_scale: float = 1.5
    """Classifier-free guidance; in the `var` convention 0 is none and the scale rises to this."""
    top_k: int = 900
    """Draw among the k likeliest codes; 0 = all, 1 = greedy."""
    top_p: float = 0.96
    """Draw among the likeliest codes that together reach this probability; 0 = all."""
    guidance: str = "var"
    """`var` = official linear ramp over the scales, `constant` = the usual (1 = none)."""

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCE_KINDS:
            raise UserError(f"guidance must be one of {GUIDANCE_KINDS}; got {self.guidance!r}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (off) or positive; got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p must lie in 0..1 (0 = off); got {self.top_p}")
        if self.cfg_scale < 0:
            raise UserError(f"cfg_scale must not be negative (0 = none); got {self.cfg_scale}")

    @property
    def is_guided(self) -> bool:
        """Whether unconditional logits are needed at all."""
        return self.cfg_scale != (1.0 if self.guidance == "constant" else 0.0)


@dataclass(frozen=True)
class DrawnScale:
    """One scale of a batch, just drawn."""

    k: int
    tokens: Tensor  # (B, l_k)
    f_hat: Tensor  # (B, C, h, w), the sum of all scales so far


@dataclass(frozen=True)
class Drawn:
    """A finished batch."""

    images: Tensor  # (B, 3, H, W) in [-1, 1]
    tokens: Tensor  # (B, L)
    frames: list[Tensor]  # K tensors (B, 3, H, W) decoded after each scale, or empty


class ImageSeeds:
    """Random numbers that belong to an image, so that it is the same in every batch.

    Each image has a CPU generator of its own; a seed names the same picture on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def uniform(self, num_tokens: int, device: torch.device) -> Tensor:
        """One number in [0, 1) per token.  # (B, num_tokens)"""
        drawn = [torch.rand(num_tokens, generator=g) for g in self.generators]
        return torch.stack(drawn).to(device)


class Sampler:
    """Draws token pyramids scale by scale from a transformer and decodes them."""

    def __init__(self, var: VAR, tokenizer: VQVAE) -> None:
        self.var, self.tokenizer = var, tokenizer

    @torch.no_grad()
    def steps(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: ImageSeeds | torch.Generator | None = None,
    ) -> Iterator[DrawnScale]:
        """Draw the scales of one batch, coarse to fine.

        Args:
            labels: Classes (B,); `num_classes` is the unconditional one.
            settings: Guidance and filtering.
            random: Seeds per image, or one generator for the batch (the order of the official
                code), or None for torch's global stream.
        """
        quantizer: MultiScaleQuantizer = self.tokenizer.quantizer
        labels = labels.to(self.var.device)
        batch_size, num_scales = len(labels), self.var.scales.num_scales
        f_hat = quantizer.empty(batch_size)
        scale_input = None
        if settings.is_guided:
            unconditional = torch.full_like(labels, self.var.num_classes)
            labels = torch.cat((labels, unconditional))
        state = self.var.begin(labels)
        for k in range(num_scales):
            if scale_input is not None and settings.is_guided:
                scale_input = scale_input.repeat(2, 1, 1)
            logits = self.var.advance(state, scale_input).float()
            if settings.is_guided:
                strength = guidance_strength(settings.cfg_scale, k, num_scales, settings.guidance)
                logits = guide(logits[:batch_size], logits[batch_size:], strength)
            tokens = self._draw(filter_logits(logits, settings.top_k, settings.top_p), random)
            f_hat = quantizer.accumulate(f_hat, quantizer.embed(tokens, k), k)
            yield DrawnScale(k, tokens, f_hat)
            if k + 1 < num_scales:
                scale_input = quantizer.next_input(f_hat, k)

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: ImageSeeds | torch.Generator | None = None,
        with_frames: bool = False,
    ) -> Drawn:
        """Draw and decode one batch.

        Args:
            labels: Classes (B,).
            settings: Guidance and filtering.
            random: As in `steps`.
            with_frames: Also decode the picture after every scale.
        """
        scales, frames = [], []
        for scale in self.steps(labels, settings, random):
            scales.append(scale)
            if with_frames:
                frames.append(self.tokenizer.decode_features(scale.f_hat))
        images = frames[-1] if frames else self.tokenizer.decode_features(scales[-1].f_hat)
        return Drawn(images, self.var.scales.merge([s.tokens for s in scales]), frames)

    @staticmethod
    def _draw(logits: Tensor, random: ImageSeeds | torch.Generator | None) -> Tensor:
        if isinstance(random, ImageSeeds):
            return draw_at(logits, random.uniform(logits.shape[1], logits.device))
        return draw(logits, random)
