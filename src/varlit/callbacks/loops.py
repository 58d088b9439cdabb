"""Progress of a loop of batches that is not training: validation, test, prediction."""

from __future__ import annotations

import math
import time
from typing import Any

from varlit.callbacks.clock import StepClock, duration
from varlit.callbacks.terminal import Terminal

QUIET_S = 15.0  # a loop without a live line says something this often


class LoopProgress:
    """Tells a loop of batches that is not training: live on a TTY, a line now and then else."""

    def __init__(self, name: str, num_batches: Any, terminal: Terminal) -> None:
        counts = num_batches if isinstance(num_batches, list) else [num_batches]
        self.name, self.total = name, sum(counts)
        self._terminal = terminal
        self._done = 0
        self._images_per_batch = 0
        self._clock = StepClock()
        self._started_s = self._told_s = time.monotonic()
        self._clock.tick(self._started_s)

    def advance(self, num_images: int = 0) -> None:
        """Count a batch, of so many images where that is known, and tell it if it is time."""
        now_s = time.monotonic()
        self._images_per_batch = max(num_images, self._images_per_batch)
        self._done += 1
        self._clock.tick(now_s)
        if self._terminal.live_is_due():
            self._terminal.live(self._line())
        elif not self._terminal.is_live and now_s - self._told_s >= QUIET_S:
            self._told_s = now_s
            self._terminal.say(self._line())

    def finish(self) -> None:
        """Say how long it took."""
        spent = duration(time.monotonic() - self._started_s)
        self._terminal.say(f"{self.name}  {self._done:,} batches in {spent}")

    def _line(self) -> str:
        words = [f"{self.name}  batch {self._done:,}"]
        if math.isfinite(self.total):
            words = [f"{words[0]}/{int(self.total):,}", f"{100 * self._done / self.total:3.0f} %"]
            left_s = self._clock.left_s(self.total - self._done)
            step_s = self._clock.step_s
            if step_s and self._images_per_batch:
                words.append(f"{self._images_per_batch / step_s:,.0f} img/s")
            if left_s is not None:
                words.append(f"{duration(left_s)} left")
        return "  ".join(words)
