"""How much of the codebook each scale uses, counted over a whole set and all processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.metrics.ranks import sum_over_ranks
from varlit.ops.counting import attainable_usage, code_counts, code_usage, perplexity
from varlit.ops.scales import Scales


@dataclass(frozen=True)
class CodebookReport:
    """Use of the codebook by scale, on the CPU, beside what was attainable at all."""

    usage_by_scale: Tensor  # (K,) share of the codes that were hit
    perplexity_by_scale: Tensor  # (K,) exp(entropy); V = all codes equally often
    # (K,) the usage that this many images could reach at most, and perplexity over V likewise
    attainable_by_scale: Tensor
    usage: float  # share of the codes hit at any scale
    perplexity: float  # of all scales together
    num_images: int


class CodebookUsage:
    """Counts codes by scale; a plain object without state in any checkpoint.

    Make a new one for each set that is counted. Counts are whole numbers of every token, without
    thresholds or averages; they are summed over processes once, in `compute`, and work without
    torch.distributed.
    """

    def __init__(self, scales: Scales, codebook_size: int) -> None:
        self.scales = scales
        self.codebook_size = codebook_size
        self._counts = torch.zeros(scales.num_scales, codebook_size, dtype=torch.int64)

    def update(self, tokens: Tensor) -> None:
        """Count token pyramids (B, L); they may lie on any device."""
        counts = code_counts(tokens, self.scales, self.codebook_size)
        # Stays on the tokens' device: a copy to the CPU every step would stall a GPU.
        self._counts = self._counts.to(counts.device) + counts

    def compute(self) -> CodebookReport:
        """Report on all processes; every one of them must call it.

        Raises:
            UserError: If nothing was counted anywhere.
        """
        counts = sum_over_ranks(self._counts.cpu())  # (K, V)
        num_images = int(counts.sum()) // self.scales.num_tokens
        if not num_images:
            raise UserError("no images were counted for the codebook's use; is the set empty?")
        together = counts.sum(dim=0)  # (V,)
        return CodebookReport(
            usage_by_scale=code_usage(counts),
            perplexity_by_scale=perplexity(counts),
            attainable_by_scale=attainable_usage(self.scales, num_images, self.codebook_size),
            usage=float(code_usage(together)),
            perplexity=float(perplexity(together)),
            num_images=num_images,
        )
