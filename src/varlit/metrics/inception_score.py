"""The inception score, made so that the order of the images does not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from varlit.errors import UserError

NUM_SPLITS = 10
SEED = 2020  # torch-fidelity's


@dataclass(frozen=True)
class InceptionScore:
    """exp(E KL(p(y|x) || p(y))), Salimans et al. 2016."""

    mean: float  # over the splits: what papers report
    std: float
    whole: float  # of all images as one split


def inception_score(
    logits: Tensor, num_splits: int = NUM_SPLITS, seed: int = SEED, ids: Tensor | None = None
) -> InceptionScore:
    """The score over shuffled splits.

    Over splits of images that are sorted by class, as the official evaluator makes them from a
    sorted file, the score would be nonsense. Here rows are brought into an order of their own
    first: that of the samples' ids, or, without ids, of the logits' values. Then they are
    shuffled by a fixed seed, as torch-fidelity shuffles files sorted by name.

    Args:
        logits: (N, C) class logits without bias.
        num_splits: Parts of nearly equal size; N must not be smaller.
        seed: Of the shuffle.
        ids: (N,) the samples' ids.

    Raises:
        UserError: If there are fewer images than splits, or a logit is not finite.
    """
    if len(logits) < num_splits:
        raise UserError(
            f"an inception score over {num_splits} splits needs at least {num_splits} images; "
            f"got {len(logits)}"
        )
    logits = logits.cpu()
    order = _order_of_values(logits) if ids is None else ids.cpu().argsort(stable=True).numpy()
    order = order[np.random.RandomState(seed).permutation(len(order))]
    bounds = [i * len(order) // num_splits for i in range(num_splits + 1)]
    parts = [
        _Split.of(logits[torch.from_numpy(order[start:stop])]) for start, stop in pairwise(bounds)
    ]
    scores = [part.score() for part in parts]
    if not np.isfinite(scores).all():
        raise UserError("the logits are not all finite; do the images hold NaN?")
    whole = _Split(
        sum(part.count for part in parts),
        math.fsum(part.negative_entropy for part in parts),
        torch.stack([part.probability for part in parts]).sum(dim=0),
    )
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), whole.score())


@dataclass(frozen=True)
class _Split:
    """Sums over images, of which the score of any union of splits can be made."""

    count: int
    negative_entropy: float  # sum of p log p
    probability: Tensor  # (C,) sum of p

    @staticmethod
    def of(logits: Tensor) -> _Split:
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        # 0 log 0 is 0, where log p is as large as float64 can tell.
        return _Split(len(logits), float(torch.special.xlogy(p, p).sum()), p.sum(dim=0))

    def score(self) -> float:
        mean = self.probability / self.count
        divergence = self.negative_entropy / self.count - float(
            torch.special.xlogy(mean, mean).sum()
        )
        return math.exp(divergence)


def _order_of_values(logits: Tensor) -> np.ndarray:
    # Two images with the same first logits are the same image; more keys only cost time.
    keys = logits[:, : min(8, logits.shape[1])].numpy().T
    return np.lexsort(keys)
