"""How far a long piece of work on files is, said on standard error."""

from __future__ import annotations

import os
import sys
import time

LIVE_S = 0.2
LINE_S = 30.0


class Progress:
    """One live line on a terminal, a line every half minute elsewhere, silence on short work.

    Args:
        what: What is done, such as "packing '/x'".
        total: Number of pieces.
        done: Pieces that an earlier run has left; they took no time of this one.
        quiet_s: Time before the first word.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet_s: float = 5.0) -> None:
        self.what, self.total, self.first, self.done = what, total, done, done
        self._start_s = time.monotonic()
        self._next_s = self._start_s + quiet_s
        # Of several processes that do the same, the first one speaks.
        self._is_mute = os.environ.get("LOCAL_RANK", "0") != "0"
        self._has_spoken = False

    def add(self, count: int = 1) -> None:
        """Tell that more pieces are done."""
        self.done += count
        now_s = time.monotonic()
        if self._is_mute or now_s < self._next_s:
            return
        self._has_spoken = True
        is_live = sys.stderr.isatty()
        self._next_s = now_s + (LIVE_S if is_live else LINE_S)
        start, end = ("\r\x1b[2K", "") if is_live else ("", "\n")
        print(f"{start}{self._line(now_s)}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the live line."""
        if self._has_spoken and sys.stderr.isatty():
            print(file=sys.stderr)

    def _line(self, now_s: float) -> str:
        text = f"{self.what}: {self.done:,} of {self.total:,} ({self.done / self.total:.0%})"
        fresh = self.done - self.first
        if fresh == 0:
            return text
        left_s = (now_s - self._start_s) / fresh * (self.total - self.done)
        return (
            f"{text}, {left_s:.0f} s left"
            if left_s < 120
            else f"{text}, {left_s / 60:.0f} min left"
        )
