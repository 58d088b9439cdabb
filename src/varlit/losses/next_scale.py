"""The objective of stage 2: cross entropy of every token given all coarser scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from varlit.ops.scales import Scales

# Elements of logits that are worked on at once: what a processor's cache holds; on a GPU as many
# as keep it busy (128 MiB in fp32).
CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}


@dataclass(frozen=True)
class NextScaleTerms:
    """The loss of a batch and what it is made of; only `loss` carries gradients."""

    loss: Tensor  # () mean over images and tokens
    loss_by_scale: Tensor  # (K,) in nats
    accuracy: Tensor | None  # () share of tokens whose likeliest code is right
    accuracy_by_scale: Tensor | None  # (K,)
    entropy_by_scale: Tensor | None  # (K,) of what is predicted, in nats; ln V = no idea


def next_scale_loss(
    logits: Tensor,
    tokens: Tensor,
    scales: Scales,
    label_smoothing: float = 0.0,
    with_details: bool = False,
) -> NextScaleTerms:
    """Cross entropy in fp32, every token weighing 1 / L as in official VAR.

    The gradient is made along with the loss, chunk by chunk and in the logits' own type, so no
    fp32 copy of all logits or of their probabilities exists: in bf16 some 11 instead of 39 MB an
    image of 680 tokens and 4096 codes. It can be differentiated once.

    The finest map holds most tokens and so dominates `loss`:
    loss = sum_k l_k * loss_by_scale[k] / L.

    Args:
        logits: (B, L, V) in any floating type.
        tokens: (B, L) int64, the codes to be predicted.
        scales: The schedule that L is cut by.
        label_smoothing: Share of the target spread evenly over all codes.
        with_details: Also count right answers and measure how sure the predictions are; costs an
            argmax and a softmax over the logits.

    Returns:
        The terms; accuracies and entropy are None unless asked for.
    """
    assert logits.shape[:2] == tokens.shape, (logits.shape, tokens.shape)
    loss, token_loss = _MeanCrossEntropy.apply(
        logits.flatten(0, 1), tokens.flatten(), label_smoothing
    )
    token_loss = token_loss.view_as(tokens)  # (B, L)
    loss_by_scale = _mean_by_scale(token_loss, scales)
    if not with_details:
        return NextScaleTerms(loss, loss_by_scale, None, None, None)
    right = (logits.detach().argmax(dim=-1) == tokens).float()  # (B, L)
    entropy = _entropy(logits.detach().flatten(0, 1)).view_as(tokens)  # (B, L)
    return NextScaleTerms(
        loss=loss,
        loss_by_scale=loss_by_scale,
        accuracy=right.mean(),
        accuracy_by_scale=_mean_by_scale(right, scales),
        entropy_by_scale=_mean_by_scale(entropy, scales),
    )


def _mean_by_scale(values: Tensor, scales: Scales) -> Tensor:
    """Mean of (B, L) over images and each token map: (K,)."""
    return torch.stack([part.mean() for part in scales.split(values)])


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of (N, V) that are worked on at once."""
    limit = CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS["cuda"])
    num_rows = max(1, limit // logits.shape[1])
    for start in range(0, len(logits), num_rows):
        yield slice(start, start + num_rows)


def _entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the distribution in each row of (N, V): (N,)."""
    entropy = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for rows in _chunks(logits):
        log_share = F.log_softmax(logits[rows], dim=1, dtype=torch.float32)
        # A code that cannot come adds nothing, and not 0 times minus infinity.
        entropy[rows] = -(log_share.exp() * log_share.clamp(min=-1e4)).sum(dim=1)
    return entropy


class _MeanCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of rows (N, V), and that of each row (N,), which carries no gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if needs_gradient else None
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for rows in _chunks(logits):
            log_share = F.log_softmax(logits[rows], dim=1, dtype=torch.float32)
            target = targets[rows, None]
            loss = -log_share.gather(1, target).squeeze(1)
            if label_smoothing:
                loss = torch.lerp(loss, -log_share.mean(dim=1), label_smoothing)
            losses[rows] = loss
            if gradient is not None:
                share = log_share.exp_()
                at_target = share.gather(1, target) - (1 - label_smoothing)
                share.scatter_(1, target, at_target)
                if label_smoothing:
                    share -= label_smoothing / logits.shape[1]
                torch.mul(share, 1 / len(logits), out=gradient[rows])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # A scalar tensor leaves the type as it is, and is not rounded to it.
        return gradient * of_mean, None, None
