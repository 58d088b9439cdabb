"""Tells a loss that jumps from one that wavers."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

BLOCK_STEPS = 5  # one hard batch is no spike: a block counts by its median
KEPT_BLOCKS = 60
FEWEST_BLOCKS = 12
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
LEAST_RISE = 0.05  # of the median: a loss that has settled wavers by next to nothing
QUIET_STEPS = 1000


class SpikeWatch:
    """Compares the loss of the last steps with that of the 300 before them.

    A spike is a block of five steps whose median lies above the median of the blocks before by more
    than `limit` deviations, where a deviation is 1.4826 times the median distance from that median.
    Medians do not care how far out a few steps are. After one it is quiet for 1,000 steps, and what
    came after a spike becomes what is usual.
    """

    def __init__(self, limit: float) -> None:
        """Begin without a past.

        Args:
            limit: How many deviations are too many; 0 = none.
        """
        self.limit = limit
        self._block: list[float] = []
        self._past: deque[float] = deque(maxlen=KEPT_BLOCKS)
        self._quiet_until = 0

    def add(self, step: int, loss: float) -> str:
        """Note the loss of a step; what to tell of it, mostly nothing."""
        if not self.limit or not math.isfinite(loss):
            return ""
        self._block.append(loss)
        if len(self._block) < BLOCK_STEPS:
            return ""
        now, self._block = median(self._block), []
        told = self._told(step, now)
        self._past.append(now)
        return told

    def forget(self) -> None:
        """Begin anew, after the weights have been exchanged."""
        self._block.clear()
        self._past.clear()

    def _told(self, step: int, now: float) -> str:
        if len(self._past) < FEWEST_BLOCKS or step < self._quiet_until:
            return ""
        usual = median(self._past)
        deviation = MAD_TO_DEVIATION * median(abs(value - usual) for value in self._past)
        if now <= usual + max(self.limit * deviation, LEAST_RISE * abs(usual)):
            return ""
        self._quiet_until = step + QUIET_STEPS
        return f"loss spike: {now:.4g} at step {step:,}, usual {usual:.4g} +- {deviation:.2g}"
