"""Programs that do not outlive the process that reads from them, whatever that one dies of."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

# A shell that waits in the same group for a line or for the end of its pipe, which the system
# closes for a process that was killed. It takes the group down, so itself and all that the
# programs have started; its own number is the group's, so that no other group can be meant.
_WATCH = "read _; kill -KILL 0"


class ProgramGuard:
    """A process group for programs, which ends with this process at the latest.

    A killed process cannot clean up, and the kernel's own way (PR_SET_PDEATHSIG) reaches neither
    what a program has started nor one whose starting thread has ended. The group is not that of
    the terminal, so Ctrl-C leaves its programs to whoever reads from them.

    Attributes:
        group: Its number, for `Popen(process_group=...)`.
    """

    def __init__(self) -> None:
        """Start the watch, before there is a program that could be left.

        Raises:
            OSError: If no process can be started.
        """
        self._process_id = os.getpid()
        heard, self._end = os.pipe()
        quiet = subprocess.DEVNULL
        try:
            self._watch = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH], stdin=heard, stdout=quiet, stderr=quiet, process_group=0
            )
        except OSError:
            os.close(self._end)
            raise
        finally:
            os.close(heard)
        self.group = self._watch.pid

    def end(self) -> None:
        """Kill the group; in a forked process, whose copy of it this is, do nothing."""
        if os.getpid() == self._process_id:
            # A line, for a process that was forked meanwhile keeps the pipe open.
            with suppress(BrokenPipeError):
                os.write(self._end, b"\n")
        os.close(self._end)
        self._watch.wait()
