"""The sampling loop: an iterator over scales, used by sampling, pictures and evaluation.

It yields what it drew at each scale, so that whoever drives it can watch a picture grow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.editing import KnownTokens
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
    smooth_mixture,
)
from varlit.ops.pyramid import to_map


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
    more_smooth: bool = False
    """Blend codes in place of the drawn one: smoother pictures, worse FID (official VAR)."""

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCE_KINDS:
            raise UserError(f"guidance must be one of {GUIDANCE_KINDS}; got {self.guidance!r}")
        if not isinstance(self.top_k, Integral) or self.top_k < 0:
            raise UserError(f"top_k must be 0 (off) or a whole number; got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p must lie in 0..1 (0 = off); got {self.top_p}")
        if not 0 <= self.cfg_scale < math.inf:
            raise UserError(f"cfg_scale must be finite, 0 or more; got {self.cfg_scale}")

    @property
    def is_guided(self) -> bool:
        """Whether unconditional logits are needed at all."""
        return self.cfg_scale != (1.0 if self.guidance == "constant" else 0.0)


@dataclass(frozen=True)
class DrawnScale:
    """One scale of a batch, just drawn."""

    k: int
    tokens: Tensor  # (B, l_k)
    f_hat: Tensor  # (B, C, h, w), the sum of all scales so far; with more_smooth, of the blends


@dataclass(frozen=True)
class Drawn:
    """A finished batch."""

    images: Tensor  # (B, 3, H, W) in [-1, 1]
    tokens: Tensor  # (B, L)
    frames: list[Tensor]  # K tensors (B, 3, H, W) decoded after each scale, or empty

    def rows(self, places: Sequence[int]) -> Drawn:
        """Some of the images, copied, so that the batch can be let go."""
        where = torch.tensor(places, device=self.images.device)
        frames = [frame[where] for frame in self.frames]
        return Drawn(self.images[where], self.tokens[where], frames)

    @staticmethod
    def joined(parts: Sequence[Drawn]) -> Drawn:
        """Batches as one."""
        return Drawn(
            torch.cat([part.images for part in parts]),
            torch.cat([part.tokens for part in parts]),
            [torch.cat(frames) for frames in zip(*(p.frames for p in parts), strict=True)],
        )


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

    def exponential(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Exponential numbers for (B, ...), the first dimension going over the images."""
        drawn = [torch.empty(shape[1:]).exponential_(generator=g) for g in self.generators]
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
        known: KnownTokens | None = None,
    ) -> Iterator[DrawnScale]:
        """Draw the scales of one batch, coarse to fine.

        Args:
            labels: Classes (B,); `num_classes` is the unconditional one.
            settings: Guidance and filtering.
            random: Seeds per image, or one generator for the batch (the order of the official
                code), or None for torch's global stream.
            known: Tokens that are given (editing); they are drawn too, so that the other random
                numbers stay what they are without, and then put right.
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
            logits = filter_logits(logits, settings.top_k, settings.top_p)
            tokens = self._draw(logits, random)
            blend = self._blend(logits, k, random) if settings.more_smooth else None
            if known is not None:
                tokens = known.at(tokens, self.var.scales.token_slice(k))
            embedding = quantizer.embed(tokens, k)
            if blend is not None:
                embedding = self._keep_known(embedding, blend, k, known)
            f_hat = quantizer.accumulate(f_hat, embedding, k)
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
        known: KnownTokens | None = None,
    ) -> Drawn:
        """Draw and decode one batch.

        Args:
            labels: Classes (B,).
            settings: Guidance and filtering.
            random: As in `steps`.
            with_frames: Also decode the picture after every scale.
            known: As in `steps`.
        """
        scales, frames = [], []
        for scale in self.steps(labels, settings, random, known):
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

    def _blend(self, logits: Tensor, k: int, random: ImageSeeds | torch.Generator | None) -> Tensor:
        """Codes blended by a Gumbel softmax of the filtered logits.  # (B, C, h_k, w_k)"""
        if isinstance(random, ImageSeeds):
            noise = random.exponential(logits.shape, logits.device)
        else:
            noise = torch.empty_like(logits).exponential_(generator=random)
        ratio = k / max(self.var.scales.num_scales - 1, 1)
        mixture = smooth_mixture(logits, noise, ratio)
        blended = mixture @ self.tokenizer.quantizer.codebook.weight.float()
        return to_map(blended, self.var.scales.sides[k])

    def _keep_known(
        self, embedding: Tensor, blend: Tensor, k: int, known: KnownTokens | None
    ) -> Tensor:
        """Blend only where tokens were drawn.  # (B, C, h_k, w_k)"""
        if known is None:
            return blend
        side, part = self.var.scales.sides[k], self.var.scales.token_slice(k)
        is_known = known.is_known[:, part].unflatten(1, (side, side)).unsqueeze(1)
        return torch.where(is_known, embedding, blend)
