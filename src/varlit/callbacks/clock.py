"""How fast a loop runs and how long it still takes, from the times of its steps alone.

Nothing here asks the device: a queue of kernels paces the steps that fill it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

WINDOW_STEPS = 200


class StepClock:
    """Times the steps of a loop; pauses, such as validation, are kept apart.

    The first step is not timed: it compiles, allocates and fills caches.

    >>> clock = StepClock()
    >>> for second in (0.0, 9.0, 11.0, 13.0):
    ...     clock.tick(second)
    >>> clock.step_s, clock.left_s(num_steps=10)
    (2.0, 20.0)
    """

    def __init__(self, window_steps: int = WINDOW_STEPS) -> None:
        self._durations_s: deque[float] = deque(maxlen=window_steps)
        self._pauses_s: deque[float] = deque(maxlen=8)
        self._last_s: float | None = None
        self._paused_s = 0.0
        self._num_ticks = 0

    def tick(self, now_s: float) -> None:
        """Note the end of a step, or at first the start of the loop."""
        if self._last_s is not None and self._num_ticks >= 2:
            self._durations_s.append(max(0.0, now_s - self._last_s - self._paused_s))
        self._last_s, self._paused_s = now_s, 0.0
        self._num_ticks += 1

    def pause(self, duration_s: float) -> None:
        """Note that this much of the running step was a pause."""
        self._paused_s += duration_s
        self._pauses_s.append(duration_s)

    @property
    def step_s(self) -> float | None:
        """Mean time of recent steps without their slowest twentieth; None before two steps."""
        return trimmed_mean(self._durations_s)

    def left_s(self, num_steps: float, num_pauses: float = 0.0) -> float | None:
        """Time for so many further steps and pauses; None before two steps."""
        step_s = self.step_s
        if step_s is None:
            return None
        pause_s = trimmed_mean(self._pauses_s) or 0.0
        return num_steps * step_s + num_pauses * pause_s


def trimmed_mean(values: Sequence[float], share: float = 0.05) -> float | None:
    """Mean without the largest share of the values: pictures and saves do not count as steps."""
    if not values:
        return None
    kept = sorted(values)[: max(1, len(values) - max(1, int(share * len(values))))]
    return sum(kept) / len(kept)


def duration(seconds: float) -> str:
    """A duration in the two units that matter: 59s, 1m02s, 2h05m, 3d04h."""
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
