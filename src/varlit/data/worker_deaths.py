"""What a loader's worker was reading when it died, and what such a death most likely means.

torch says no more than "DataLoader worker (pid 123) is killed by signal: Killed", and that from
wherever the main process happens to be. Each worker therefore keeps a note in shared memory, which
outlives it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import weakref
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

_DEATH = re.compile(
    r"DataLoader worker \(pid (\d+)\) "
    r"(?:is killed by signal: ([^.]+)\.|exited unexpectedly with exit code (\d+))"
)
"""torch's message; raised by its handler of SIGCHLD (torch/csrc/DataLoader.cpp)."""
_MISSED = re.compile(r"DataLoader worker \(pid\(s\) (\d+)[^)]*\) exited unexpectedly")
"""torch's message where its queue saw the death before the handler did: it does not say how."""
_FULL = re.compile(r"unable to (?:mmap|write|open|resize|allocate).*</torch_\w+>")
"""torch's message where a worker cannot get shared memory for a batch."""

NAME_BYTES = 512
"""Of a noted name; what is longer is cut."""


@dataclass(frozen=True)
class _Meaning:
    """What a way to die most likely comes from, and what helps."""

    cause: str
    cure: str


_FEWER = "use fewer workers: --data.num_workers {fewer}"
_SHARED_MEMORY = _Meaning(
    "/dev/shm is most likely full (see `df -h /dev/shm`)",
    "make it larger (docker: --shm-size), or read in the main process: --data.num_workers 0",
)
_MEANINGS = {
    "Killed": _Meaning("most likely by the kernel because memory was full (`dmesg` tells)", _FEWER),
    "Terminated": _Meaning("somebody sent SIGTERM", "start the run again to go on"),
    "Bus error": _SHARED_MEMORY,
    "Segmentation fault": _Meaning(
        "a decoder most likely crashed over a broken file",
        "remove that file (`varlit doctor --data PATH` reads them all)",
    ),
}
_OTHER = _Meaning(
    "the reason is not known",
    "to see it, read in the main process: --data.num_workers 0",
)


class WorkerNotes:
    """A place for each worker of one loader to say what it is reading.

    Args:
        num_workers: Worker processes.

    Attributes:
        processes: The workers, where they were started by this process.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.processes: list[BaseProcess] = []
        self.pids: Any = multiprocessing.RawArray("q", num_workers)
        self.names: Any = multiprocessing.RawArray("c", NAME_BYTES * num_workers)
        _ALL.add(self)

    def begin(self, worker: int) -> None:
        """Begin a worker: it says which process it is, and from now on what it reads."""
        global _mine
        _mine = (self, worker)
        self.pids[worker] = os.getpid()
        self.write(worker, "")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the processes, of which a worker knows nothing."""
        return self.__dict__ | {"processes": []}

    def how_it_ended(self, pid: int) -> str | None:
        """Return how a worker ended, in the words of torch; None of one that is not known."""
        for process in self.processes:
            if process.pid == pid and (code := process.exitcode) is not None:
                return f"exit code {code}" if code >= 0 else signal.strsignal(-code)
        return None

    def write(self, worker: int, name: str) -> None:
        """Note what a worker reads next."""
        noted = name.encode("utf-8", "surrogateescape")[: NAME_BYTES - 1] + b"\0"
        first = NAME_BYTES * worker
        self.names[first : first + len(noted)] = noted

    def read(self, worker: int) -> str:
        """Return what a worker noted last."""
        first = NAME_BYTES * worker
        noted: bytes = self.names[first : first + NAME_BYTES]
        return noted.split(b"\0")[0].decode("utf-8", "backslashreplace")


_ALL: weakref.WeakSet[WorkerNotes] = weakref.WeakSet()
_mine: tuple[WorkerNotes, int] | None = None
"""In a worker, where its note goes."""


def note_reading(name: str) -> None:
    """Say what is read next, as a person finds it; does nothing outside of a worker."""
    if _mine is not None:
        notes, worker = _mine
        notes.write(worker, name)


def explain_death(error: BaseException) -> str | None:
    """Say in a line which worker died, over what, why and what helps; None if none has died."""
    missed: re.Match[str] | None = None
    cause: BaseException | None = error
    while cause is not None:
        if death := _DEATH.search(str(cause)):
            return _explain(int(death[1]), death[2] or f"exit code {death[3]}")
        if _FULL.search(str(cause)):
            return f"a worker of the data loader stopped: {_SHARED_MEMORY.cause}; " + (
                _SHARED_MEMORY.cure
            )
        missed = missed or _MISSED.search(str(cause))
        cause = cause.__cause__ or cause.__context__
    if missed is None:
        return None
    told = (notes.how_it_ended(int(missed[1])) for notes in list(_ALL))
    return _explain(int(missed[1]), next(filter(None, told), "nothing says how"))


def _explain(pid: int, how: str) -> str:
    who, reading, fewer = f"a worker of the data loader (process {pid})", "", 0
    for notes in list(_ALL):
        if pid in list(notes.pids):
            worker = list(notes.pids).index(pid)
            who = f"worker {worker} of the data loader's {notes.num_workers} (process {pid})"
            reading = f" while it read '{name}'" if (name := notes.read(worker)) else ""
            fewer = notes.num_workers // 2
    meaning = _MEANINGS.get(how, _OTHER)
    return f"{who} died{reading} ({how}): {meaning.cause}; {meaning.cure.format(fewer=fewer)}"
