"""The processes that this one has started, and what the end of one says."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

OBSERVER = "child-process-observer"
"""Name of the thread by which Lightning watches the processes that it has started."""


def started_by(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """Return the processes that a trainer has started, and take them out of Lightning's hands.

    Its own observer kills all of them and this process by SIGKILL, without a word.
    """
    launcher = trainer.strategy.launcher
    started = getattr(launcher, "procs", None)
    if launcher is None or not started:
        return []
    if any(thread.name == OBSERVER for thread in threading.enumerate()):
        # It holds this very list, and is done when there is nothing in it.
        launcher.procs = list(started)  # type: ignore[attr-defined]
        started.clear()
        started = launcher.procs  # type: ignore[attr-defined]
    return [process for process in started if isinstance(process, subprocess.Popen)]


def told_ending(code: int) -> str:
    """Say what a return code of Popen means."""
    if code >= 0:
        return f"it ended with code {code}, see above"
    name = signal.Signals(-code).name
    likely = ", most likely by the kernel because memory was full (`dmesg` tells)"
    return f"it was killed by {name}{likely if name == 'SIGKILL' else ''}"


def shell_code(code: int) -> int:
    """Return it as a shell would: 137 for SIGKILL."""
    return code if code > 0 else 128 - code


def kill_workers() -> None:
    """Kill the processes that read data for this one."""
    # By number: Process.kill first waits for news of it, in which time the first thread may run.
    for number in [worker.pid for worker in multiprocessing.active_children()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cast(int, number), signal.SIGKILL)
