"""Where the random numbers of a batch come from.

Numbers that belong to an image make it the same in every batch; a generator draws for the batch as
a whole, in the order of the official code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varlit.errors import UserError


class ImageSeeds:
    """Random numbers that belong to an image, so that it is the same in every batch.

    Each image has a CPU generator of its own; a seed names the same picture on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def uniform(self, part: slice, device: torch.device) -> Tensor:
        """One number in [0, 1) for each of these tokens; parts are asked for in order.  # (B, l)"""
        num_tokens = part.stop - part.start
        drawn = [torch.rand(num_tokens, generator=g) for g in self.generators]
        return torch.stack(drawn).to(device)

    def all_at_once(self, num_tokens: int, device: torch.device) -> GivenUniforms:
        """The numbers that `uniform` would give part by part, with one copy to the device."""
        return GivenUniforms(self.uniform(slice(0, num_tokens), device))

    def exponential(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Exponential numbers for (B, ...), the first dimension going over the images."""
        drawn = [torch.empty(shape[1:]).exponential_(generator=g) for g in self.generators]
        return torch.stack(drawn).to(device)


class GivenUniforms:
    """Numbers that lie on the device already, as a CUDA graph needs them.

    Args:
        numbers: In [0, 1), one for each token of the batch, (B, L).
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def uniform(self, part: slice, device: torch.device) -> Tensor:
        """Those of some tokens.  # (B, l)"""
        return self.numbers[:, part].to(device)

    def exponential(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Not to be had.

        Raises:
            UserError: Always.
        """
        raise UserError("more_smooth draws a number per code; give seeds or a generator for that")


RandomNumbers = ImageSeeds | GivenUniforms | torch.Generator | None
"""None is torch's global stream."""
