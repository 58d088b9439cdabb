"""What a run says on the terminal: lines that stay, and on a TTY one live line under them."""

from __future__ import annotations

import shutil
import sys
import time

REFRESH_S = 0.2
CLEAR = "\r\x1b[2K"


class Terminal:
    """Standard output with a live last line; without a TTY the live line is left out."""

    def __init__(self) -> None:
        self._live_since_s = -1.0

    @property
    def is_live(self) -> bool:
        """Whether a line can be rewritten in place."""
        return sys.stdout.isatty()

    def live_is_due(self) -> bool:
        """Whether to draw the live line again; ask before computing what it says."""
        return self.is_live and time.monotonic() - self._live_since_s >= REFRESH_S

    def live(self, text: str) -> None:
        """Rewrite the live line, cut to the terminal's width."""
        if self.is_live:
            width = shutil.get_terminal_size().columns
            sys.stdout.write(CLEAR + text[: width - 1])
            sys.stdout.flush()
            self._live_since_s = time.monotonic()

    def say(self, text: str = "") -> None:
        """Print lines that stay, in place of the live line."""
        say(text)


def say(text: str = "") -> None:
    """Print lines that stay; a live line that may stand there is wiped first."""
    wipe = CLEAR if sys.stdout.isatty() else ""
    sys.stdout.write(f"{wipe}{text}\n" if text else wipe)
    sys.stdout.flush()
