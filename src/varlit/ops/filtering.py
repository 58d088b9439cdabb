"""From logits to tokens: guidance, top-k and top-p filtering, drawing.

Written to be read: what filtering and drawing mean. `varlit.ops.drawing` does the same faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

GUIDANCE_KINDS = ("var", "constant")


def guidance_strength(cfg_scale: float, k: int, num_scales: int, kind: str = "var") -> float:
    """The weight t of scale k in logits = (1 + t) * conditional - t * unconditional.

    `var` is the official convention: t rises linearly from 0 at the first scale to `cfg_scale`
    at the last, so 0 means no guidance and 1.5 ends at a standard scale of 2.5. `constant` is
    the usual one of classifier-free guidance: t = cfg_scale - 1 at every scale, 1 means none.
    """
    if kind == "constant":
        return cfg_scale - 1.0
    return cfg_scale * k / max(num_scales - 1, 1)


def guide(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """Move logits (B, L, V) away from the unconditional ones (Ho & Salimans 2022)."""
    return (1 + strength) * conditional - strength * unconditional


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set to -inf what top-k, then top-p, excludes; 0 turns either off.

    Args:
        logits: (B, L, V).
        top_k: Keep the k largest; ties with the k-th are kept, as in the official code.
        top_p: Keep the smallest set of codes whose probability reaches p, never none; of equal
            logits at its edge the codes of higher number.
    """
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if 0 < top_p < 1:
        ascending, order = logits.sort(dim=-1, stable=True)
        tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        tail[..., -1] = False
        logits = logits.masked_fill(tail.scatter(-1, order, tail), -torch.inf)
    return logits


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token per position of filtered logits (B, L, V) by multinomial.  # (B, L)"""
    probability = logits.softmax(dim=-1).flatten(0, 1)
    drawn = torch.multinomial(probability, 1, replacement=True, generator=generator)
    return drawn.view(logits.shape[:-1])


def draw_at(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw by inverting the cumulative distribution at `uniform` in [0, 1).

    The token of a position depends on its own number alone, so an image that brings its own
    numbers is the same in every batch.

    Args:
        logits: Filtered logits (B, L, V).
        uniform: (B, L).
    """
    # A parallel sum in fp32 may fall back by a rounding, and then hit a code without probability.
    cumulative = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = (uniform * cumulative[..., -1]).unsqueeze(-1)
    index = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Rounding may push a number past the end; the last code with probability is meant.
    last = logits.shape[-1] - 1 - (logits > -torch.inf).flip(-1).int().argmax(dim=-1)
    return torch.minimum(index, last)


def smooth_mixture(logits: Tensor, exponential: Tensor, ratio: float) -> Tensor:
    """Weights over the codes by a Gumbel softmax that sharpens towards the finest scale.

    The official `more_smooth`: logits times 1 + ratio, temperature 0.27 * (1 - 0.95 * ratio), at
    least 0.005 (FoundationVision/VAR, models/var.py).

    Args:
        logits: Filtered logits (B, L, V).
        exponential: Numbers drawn from Exponential(1), (B, L, V).
        ratio: k / (K - 1), 0 at the coarsest scale.

    Returns:
        (B, L, V), each row summing to 1.
    """
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    gumbel = -exponential.log()
    return ((logits * (1 + ratio) + gumbel) / temperature).softmax(dim=-1)
