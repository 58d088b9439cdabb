"""A whole sample in memory that stays where it is: labels and random numbers in, images out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varlit.generation.editing.known import KnownTokens
from varlit.generation.random_numbers import GivenUniforms
from varlit.generation.recorded.recorder import Recorder
from varlit.generation.sampler import Drawn, Sampler, SamplingSettings


@dataclass(frozen=True)
class GraphKey:
    """What a recording is made for."""

    batch_size: int
    settings: SamplingSettings
    with_frames: bool
    dtype: torch.dtype | None


class Recording:
    """One batch in memory that stays where it is, and the replay that fills it.

    Args:
        sampler: What is recorded.
        key: For what.
        recorder: How.
    """

    def __init__(self, sampler: Sampler, key: GraphKey, recorder: Recorder) -> None:
        device, shape = sampler.var.device, (key.batch_size, sampler.var.steps.num_tokens)
        with torch.inference_mode(False):  # or they could not be filled outside of it
            self.labels = torch.zeros(key.batch_size, dtype=torch.int64, device=device)
            self.uniform = torch.zeros(shape, device=device)
            self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
            self.is_known = torch.zeros(shape, dtype=torch.bool, device=device)

        def run() -> Drawn:
            with torch.autocast(device.type, enabled=False):
                return sampler.draw(
                    self.labels,
                    key.settings,
                    GivenUniforms(self.uniform),
                    key.with_frames,
                    KnownTokens(self.tokens, self.is_known),
                )

        with torch.inference_mode(False):
            self._replay = recorder.record(run)

    def draw(self, labels: Tensor, uniform: Tensor, known: KnownTokens | None) -> Drawn:
        """Fill in a batch of this size or less, replay, and copy what came out.

        Args:
            labels: Classes (B,).
            uniform: Random numbers (B, L).
            known: Tokens that are given, (B, L).
        """
        count = len(labels)
        self.labels[:count].copy_(labels)
        self.uniform[:count].copy_(uniform)
        self.is_known.zero_()
        if known is not None:
            self.is_known[:count].copy_(known.is_known)
            self.tokens[:count].copy_(known.tokens)
        drawn = self._replay()
        frames = [frame[:count].clone() for frame in drawn.frames]
        return Drawn(drawn.images[:count].clone(), drawn.tokens[:count].clone(), frames)
