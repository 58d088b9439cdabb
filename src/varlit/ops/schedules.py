"""Learning rate, weight decay and averaging as functions of the step, so that resuming is exact."""

from __future__ import annotations

import math
from typing import Literal, get_args

from varlit.errors import UserError

ScheduleKind = Literal["cosine", "linear", "piecewise", "exponential", "constant"]
SCHEDULE_KINDS: tuple[str, ...] = get_args(ScheduleKind)
# What each kind reads besides step and warm-up; any other setting is ignored.
SETTINGS_READ: dict[str, tuple[str, ...]] = {
    "cosine": ("final",),
    "linear": ("final", "flat"),
    "piecewise": ("final", "knee"),
    "exponential": ("final", "flat"),
    "constant": (),
}


def lr_factor(
    kind: str,
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.005,
    final: float = 0.0,
    flat: float = 0.05,
    knee: float = 0.8,
) -> float:
    """Share of the peak learning rate at `step`.

    Linear warm-up from `start` to 1, then over the remaining steps one of the shapes of official
    VAR (its names in brackets) from 1 to `final`:

    - `cosine` (cos): half a cosine.
    - `linear` (lin00, lin0, lin): 1 for the first `flat` of the steps (0, 0.05, 0.15), then a line.
    - `piecewise` (lin0.8): a gentle line up to `knee`, then a steep one. At the knee the rate lies
      half-way between 1 and the straight line.
    - `exponential` (exp): 1 for the first `flat` (0.15 there), then equal ratios; `final` > 0.
    - `constant`: 1.

    Raises:
        UserError: If `kind` is none of these.

    >>> lr_factor("linear", 0, 100, warmup_steps=10), lr_factor("constant", 50, 100)
    (0.005, 1.0)
    """
    if kind not in SCHEDULE_KINDS:
        raise UserError(f"schedule must be one of {', '.join(SCHEDULE_KINDS)}; got `{kind}`")
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    progress = min(progress, 1.0)
    if kind == "cosine":
        return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * progress))
    if kind == "piecewise":
        at_knee = 1 - (1 - final) * knee / 2
        if progress < knee:
            return 1 + (at_knee - 1) * progress / knee
        return final + (at_knee - final) * (1 - progress) / (1 - knee)
    if kind == "constant" or progress < flat:
        return 1.0
    left = (1 - progress) / (1 - flat)
    return final + (1 - final) * left if kind == "linear" else final ** (1 - left)


def cosine_between(first: float, last: float, step: int, total_steps: int) -> float:
    """Move from `first` to `last` along half a cosine over the whole training (weight decay)."""
    progress = min(step / max(total_steps - 1, 1), 1.0)
    return last + (first - last) * (0.5 + 0.5 * math.cos(math.pi * progress))


def ema_decay(decay: float, num_updates: int) -> float:
    """Averaging decay with warm-up, min(decay, (1 + n) / (10 + n)), after vaex."""
    return min(decay, (1 + num_updates) / (10 + num_updates))
