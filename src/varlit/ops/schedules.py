"""Learning rate, weight decay and averaging as functions of the step, so that resuming is exact."""

from __future__ import annotations

import math

SCHEDULE_KINDS = ("cosine", "linear", "constant")


def lr_factor(
    kind: str,
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.005,
    final: float = 0.0,
    flat: float = 0.05,
) -> float:
    """Share of the peak learning rate at `step`.

    Linear warm-up from `start` to 1, then `cosine` to `final`; `linear`, which holds 1 for the
    first `flat` of the remaining steps (the `lin0` of official VAR); or `constant`.

    >>> lr_factor("linear", 0, 100, warmup_steps=10), lr_factor("constant", 50, 100)
    (0.005, 1.0)
    """
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    progress = min(progress, 1.0)
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * progress))
    if progress < flat:
        return 1.0
    return final + (1 - final) * (1 - progress) / (1 - flat)


def cosine_between(first: float, last: float, step: int, total_steps: int) -> float:
    """Move from `first` to `last` along half a cosine over the whole training (weight decay)."""
    progress = min(step / max(total_steps - 1, 1), 1.0)
    return last + (first - last) * (0.5 + 0.5 * math.cos(math.pi * progress))


def ema_decay(decay: float, num_updates: int) -> float:
    """Averaging decay with warm-up, min(decay, (1 + n) / (10 + n)), after vaex."""
    return min(decay, (1 + num_updates) / (10 + num_updates))
