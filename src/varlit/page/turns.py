"""One model draws one thing at a time: a short queue in front of it, in which nobody is stuck."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_EVERY_S = 0.2


class QueueFullError(Exception):
    """Too many wait already."""


class Queue:
    """A lock that bounds how many wait for it, and lets go of those who left.

    Args:
        max_waiting: How many may wait while one draws.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.num_inside = 0  # who draws, and who waits
        self._drawing, self._counting = threading.Lock(), threading.Lock()

    @property
    def is_free(self) -> bool:
        """Whether nobody draws or waits."""
        return self.num_inside == 0

    @contextmanager
    def place(self) -> Iterator[int]:
        """Take a place; gives how many are ahead.

        Raises:
            QueueFullError: If there is none.
        """
        with self._counting:
            if self.num_inside > self.max_waiting:
                raise QueueFullError
            ahead, self.num_inside = self.num_inside, self.num_inside + 1
        try:
            yield ahead
        finally:
            with self._counting:
                self.num_inside -= 1

    @contextmanager
    def turn(self, has_left: Callable[[], bool]) -> Iterator[bool]:
        """Wait for the turn; False where whoever waited has left meanwhile."""
        is_mine = self._drawing.acquire(blocking=False)
        while not is_mine and not has_left():
            is_mine = self._drawing.acquire(timeout=LOOK_EVERY_S)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._drawing.release()
