"""The sampling loop: an iterator over scales, used by sampling, pictures and evaluation.

It yields what it drew at each scale, so that whoever drives it can watch a picture grow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.canvas import open_canvas
from varlit.generation.editing.known import KnownTokens
from varlit.generation.random_numbers import GivenUniforms, ImageSeeds, RandomNumbers
from varlit.models.drawing_copy import drawing_copy
from varlit.models.sampling_state import ClassSignals, SamplingState
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.drawing import draw_exactly_at, draw_sorted, filter_exactly
from varlit.ops.filtering import (
    GUIDANCE_KINDS,
    draw,
    guidance_strength,
    guide,
    smooth_mixture,
)

__all__ = ["Drawn", "DrawnScale", "ImageSeeds", "Sampler", "SamplingSettings"]

DRAW_KINDS = ("exact", "sorted")


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
    """`var` = official linear ramp over the scales, `constant` = the usual (1 = none), which suits
    a raster scan, whose first rows the ramp would hardly guide."""
    more_smooth: bool = False
    """Blend codes in place of the drawn one: smoother pictures, worse FID (official VAR)."""
    draw: str = "exact"
    """`exact` = the tokens of the plain definition, bit for bit; `sorted` = others of the same
    distribution, drawn among the sorted codes, which is faster."""

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCE_KINDS:
            raise UserError(f"guidance must be one of {GUIDANCE_KINDS}; got {self.guidance!r}")
        if not isinstance(self.top_k, Integral) or self.top_k < 0:
            raise UserError(
                f"top_k must be 0 (off) or a whole number of codes, such as 900; got {self.top_k}"
            )
        if not isinstance(self.top_p, Real) or not 0 <= self.top_p <= 1:
            raise UserError(
                f"top_p must lie in 0..1, such as 0.96 (0 and 1 = off); got {self.top_p}"
            )
        if not isinstance(self.cfg_scale, Real) or not 0 <= self.cfg_scale < math.inf:
            none = "1 = no guidance" if self.guidance == "constant" else "0 = no guidance"
            raise UserError(f"cfg_scale must be finite, 0 or more ({none}); got {self.cfg_scale}")
        if self.draw not in DRAW_KINDS:
            raise UserError(f"draw must be one of {DRAW_KINDS}; got {self.draw!r}")
        if self.draw == "sorted" and self.more_smooth:
            raise UserError(
                "more_smooth blends all codes, which draw sorted never sees; take exact"
            )

    @property
    def is_guided(self) -> bool:
        """Whether unconditional logits are needed at all."""
        return self.cfg_scale != (1.0 if self.guidance == "constant" else 0.0)


@dataclass(frozen=True)
class DrawnScale:
    """One scale of a batch, just drawn."""

    k: int
    tokens: Tensor  # (B, l_k)
    f_hat: Tensor  # (B, C, h, w), the canvas so far; of a raster scan, so far as rows are full


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


class Sampler:
    """Draws token pyramids scale by scale from a transformer and decodes them.

    Args:
        var: Draws.
        tokenizer: Decodes.
        dtype: Of the weights and the cache, such as bfloat16: they are cast now, once, in a copy,
            instead of by autocast at each step. The tokenizer stays as it is. None = as they are.
        class_table: Compute AdaLN of all classes once, at the first batch. It is as large as
            AdaLN's weights where there are as many classes as channels (ImageNet, d16), and saves
            reading those for every batch: it pays for many small batches. Logits differ by
            roundings; make a new sampler after training on.
    """

    def __init__(
        self,
        var: VAR,
        tokenizer: VQVAE,
        dtype: torch.dtype | None = None,
        class_table: bool = False,
    ) -> None:
        self.var = var if dtype is None else drawing_copy(var, dtype)
        self.tokenizer, self.has_class_table = tokenizer, class_table
        self._class_table: ClassSignals | None = None

    @torch.no_grad()
    def steps(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: RandomNumbers = None,
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
        # Checked first: on a GPU a label out of range ends the whole process.
        labels = self.var.check_labels(labels).to(self.var.device)
        steps, batch_size, num_steps = self.var.steps, len(labels), self.var.steps.num_steps
        canvas = open_canvas(self.var, self.tokenizer, batch_size)
        if isinstance(random, ImageSeeds) and not settings.more_smooth:
            random = random.all_at_once(steps.num_tokens, self.var.device)
        if settings.is_guided:
            unconditional = torch.full_like(labels, self.var.num_classes)
            labels = torch.cat((labels, unconditional))
        state, f_hat = self._begin(labels), canvas.features
        for k in range(num_steps):
            part, step_input = steps.token_slice(k), canvas.next_input()
            if step_input is not None and settings.is_guided:
                step_input = step_input.repeat(2, 1, 1)
            logits = self.var.advance(state, step_input).float()
            if settings.is_guided:
                strength = guidance_strength(settings.cfg_scale, k, num_steps, settings.guidance)
                logits = _guided(logits, strength)
            if settings.draw == "sorted":
                uniform = _uniform(logits, part, random)
                tokens = draw_sorted(logits, uniform, settings.top_k, settings.top_p)
            else:
                logits = filter_exactly(logits, settings.top_k, settings.top_p)
                tokens = _draw(logits, part, random)
            blend = self._blend(logits, k / max(num_steps - 1, 1), random, settings)
            if known is not None:
                tokens = known.at(tokens, part, canvas.features)
                blend = self._keep_known(tokens, blend, known.is_known[:, part])
            canvas.put(tokens, blend)
            if k in steps.frame_steps:
                f_hat = canvas.features
            yield DrawnScale(k, tokens, f_hat)

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: RandomNumbers = None,
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
            if with_frames and scale.k in self.var.steps.frame_steps:
                frames.append(self.decode(scale.f_hat))
        images = frames[-1] if frames else self.decode(scales[-1].f_hat)
        return Drawn(images, self.var.scales.merge([s.tokens for s in scales]), frames)

    def decode(self, features: Tensor) -> Tensor:
        """Images of canvases.  # (B, 3, H, W)"""
        return self.tokenizer.decode_features(features)

    def _begin(self, labels: Tensor) -> SamplingState:
        if not self.has_class_table:
            return self.var.begin(labels)
        if self._class_table is None:
            self._class_table = self.var.read_classes()
        return self.var.begin(labels, self._class_table)

    def _blend(
        self, logits: Tensor, ratio: float, random: RandomNumbers, settings: SamplingSettings
    ) -> Tensor | None:
        """Codes blended by a Gumbel softmax of the filtered logits, if so set.  # (B, l_k, C)"""
        if not settings.more_smooth:
            return None
        if isinstance(random, ImageSeeds | GivenUniforms):
            noise = random.exponential(logits.shape, logits.device)
        else:
            noise = torch.empty_like(logits).exponential_(generator=random)
        mixture = smooth_mixture(logits, noise, ratio)
        with torch.autocast(logits.device.type, enabled=False):  # the canvas is fp32
            return mixture @ self.tokenizer.quantizer.codebook.weight.float()

    def _keep_known(self, tokens: Tensor, blend: Tensor | None, is_known: Tensor) -> Tensor | None:
        """Blend only where tokens were drawn.  # (B, l_k, C)"""
        if blend is None:
            return None
        codes = self.tokenizer.quantizer.codebook(tokens)
        return torch.where(is_known.unsqueeze(-1), codes, blend)


def _guided(logits: Tensor, strength: float) -> Tensor:
    """Guide the conditional half of a batch by the other.  # (2B, l, V) -> (B, l, V)"""
    conditional, unconditional = logits.chunk(2)
    return guide(conditional, unconditional, strength) if strength else conditional


def _uniform(logits: Tensor, part: slice, random: RandomNumbers) -> Tensor:
    """A number in [0, 1) for each token of logits (B, l, V).  # (B, l)"""
    if isinstance(random, ImageSeeds | GivenUniforms):
        return random.uniform(part, logits.device)
    return torch.rand(logits.shape[:-1], generator=random, device=logits.device)


def _draw(logits: Tensor, part: slice, random: RandomNumbers) -> Tensor:
    """Tokens of filtered logits (B, l, V), by the plain definition.  # (B, l)"""
    if isinstance(random, ImageSeeds | GivenUniforms):
        return draw_exactly_at(logits, random.uniform(part, logits.device))
    return draw(logits, random)
