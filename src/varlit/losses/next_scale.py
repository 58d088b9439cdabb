"""The objective of stage 2: cross entropy of every token given all coarser scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from varlit.ops.scales import Scales


@dataclass(frozen=True)
class NextScaleTerms:
    """The loss of a batch and what it is made of; only `loss` carries gradients."""

    loss: Tensor  # () mean over images and tokens
    loss_by_scale: Tensor  # (K,) in nats
    accuracy: Tensor | None  # () share of tokens whose likeliest code is right
    accuracy_by_scale: Tensor | None  # (K,)


def next_scale_loss(
    logits: Tensor,
    tokens: Tensor,
    scales: Scales,
    label_smoothing: float = 0.0,
    with_accuracy: bool = False,
) -> NextScaleTerms:
    """Cross entropy in fp32, every token weighing 1 / L as in official VAR.

    The finest map holds most tokens and so dominates `loss`:
    loss = sum_k l_k * loss_by_scale[k] / L.

    Args:
        logits: (B, L, V) in any floating type.
        tokens: (B, L) int64, the codes to be predicted.
        scales: The schedule that L is cut by.
        label_smoothing: Share of the target spread evenly over all codes.
        with_accuracy: Also count right answers; costs an argmax over the logits.

    Returns:
        The terms; the accuracies are None unless asked for.
    """
    assert logits.shape[:2] == tokens.shape, (logits.shape, tokens.shape)
    token_loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        tokens.flatten(),
        reduction="none",
        label_smoothing=label_smoothing,
    ).view_as(tokens)  # (B, L)
    right = (logits.detach().argmax(dim=-1) == tokens).float() if with_accuracy else None  # (B, L)
    return NextScaleTerms(
        loss=token_loss.mean(),
        loss_by_scale=_mean_by_scale(token_loss.detach(), scales),
        accuracy=None if right is None else right.mean(),
        accuracy_by_scale=None if right is None else _mean_by_scale(right, scales),
    )


def _mean_by_scale(values: Tensor, scales: Scales) -> Tensor:
    """Mean of (B, L) over images and each token map: (K,)."""
    return torch.stack([part.mean() for part in scales.split(values)])
