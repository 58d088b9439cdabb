"""The processes of a run end together: one that fails takes the others along within seconds.

Without this they would wait for it in their next collective until torch's time is up, half an hour
later, and then say something about that collective. A thread of each process looks every half
second at the process that started it, at those that it has started, and at the noticeboard.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch.distributed as dist

from varlit.cli.running.children import kill_workers, shell_code, started_by, told_ending
from varlit.cli.running.noticeboard import Failure, Noticeboard
from varlit.data.worker_deaths import explain_death
from varlit.disks import whole_file
from varlit.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

POLL_S = 0.5
GRACE_S = 3.0
"""How long an echo of another's end waits for that one's own words."""
CHILD_GRACE_S = 1.0
FAREWELL_S = 8.0
"""How long the others have to end themselves before they are killed."""
SILENCE_S = 60.0
"""After this a process that has not shown a sign of life is given up. A beat needs the interpreter
only, for a moment; nothing that a training does holds it for so long."""
GONE = "it is gone without a word: killed, or its machine is"
LINE_CHARS = 300
LAUNCHER = "VARLIT_LAUNCHER"
"""Environment variable by which a started process knows the one that started it."""
_ECHOES = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe")


class SharedFate:
    """Around a run: with one process it does nothing.

    A process that fails posts its error, and the others end with it, with the same exit code. One
    that is killed is missed by the process that started it, by those it has started, or by its
    heartbeat. Only the first process of each machine speaks for the others.

    Args:
        num_ranks: Processes of the run.
        local_rank: Number of this one on its machine.
        folder: Of the run; `errors/` in it gets the traceback of each process that fails.
        children: Gives the processes that this one has started.
        was_told: Whether a user has asked the run to stop: then killed processes are no failure.
    """

    def __init__(
        self,
        num_ranks: int,
        local_rank: int,
        folder: Path,
        children: Callable[[], list[subprocess.Popen[bytes]]],
        was_told: Callable[[], bool] = lambda: False,
    ) -> None:
        self.num_ranks, self.local_rank, self.folder = num_ranks, local_rank, folder
        self._children, self._was_told = children, was_told
        self._parent = int(os.environ.get(LAUNCHER, 0)) if local_rank else 0
        self._board: Noticeboard | None = None
        self._is_over = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="shared-fate", daemon=True)
        self._speaks = not local_rank
        self._heard: dict[int, _Beats] = {}
        self._next_roll_s = 0.0
        self._missed_since_s: dict[int, float] = {}

    @classmethod
    def of(cls, trainer: Trainer, folder: Path) -> SharedFate:
        """Watch the processes of a trainer."""
        watchers: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]

        def was_told() -> bool:
            return any(getattr(watcher, "signal_number", 0) for watcher in watchers)

        def children() -> list[subprocess.Popen[bytes]]:
            return started_by(trainer)

        return cls(trainer.world_size, trainer.local_rank, folder, children, was_told)

    def __enter__(self) -> SharedFate:
        """Begin to watch."""
        if self.num_ranks > 1:
            if not self.local_rank:
                os.environ[LAUNCHER] = str(os.getpid())
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave together with the others, or tell them why not."""
        if self.num_ranks == 1:
            return
        if isinstance(error, Exception):
            self._fail(error)
            return
        if error is not None:  # asked to stop; who is missing now is not missed
            self._is_over.set()
        self._leave()
        self._await(self._all_left, math.inf if error is None else FAREWELL_S)
        self._is_over.set()

    @property
    def _rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else self.local_rank

    def _connected(self) -> Noticeboard | None:
        if self._board is None and dist.is_initialized():
            self._board = Noticeboard()
        return self._board

    def _watch(self) -> None:
        while not self._is_over.wait(POLL_S):
            try:
                failure = self._told() or self._missed()
            except dist.DistError:
                failure = self._missed() or self._without_store()
            if failure is not None:
                self._end(failure)

    def _told(self) -> Failure | None:
        board = self._connected()
        if board is None:
            return None
        board.beat()
        return board.failure() or self._silent(board)

    def _missed(self) -> Failure | None:
        """Look at the process that started this one, and at those that this one has started."""
        if self._parent and os.getppid() != self._parent:
            return self._without_parent()
        now_s = time.monotonic()
        for number, child in enumerate(self._children(), 1):
            code = child.poll()
            if not code or self._was_told():
                continue
            # Its own words come first; and this process may have killed it because it stops.
            if now_s - self._missed_since_s.setdefault(number, now_s) > CHILD_GRACE_S:
                return Failure(self._rank + number, told_ending(code), shell_code(code))
        return None

    def _without_parent(self) -> Failure:
        self._speaks = self.local_rank == 1
        return Failure(self._rank - self.local_rank, GONE)

    def _without_store(self) -> Failure:
        self._speaks = self.local_rank <= 1
        return Failure(0, GONE)

    def _silent(self, board: Noticeboard) -> Failure | None:
        """Call the roll, in the first process."""
        now_s = time.monotonic()
        if board.rank or now_s < self._next_roll_s:
            return None
        self._next_roll_s = now_s + SILENCE_S / 6
        for rank, count in enumerate(board.beats()):
            heard = self._heard.get(rank)
            if heard is None or heard.count != count:
                self._heard[rank] = _Beats(count, now_s)
            elif now_s - heard.since_s > SILENCE_S and not board.have_left([rank]):
                said = f"it has given no sign of life for {SILENCE_S:g} s: stopped, or out of reach"
                return Failure(rank, said)
        return None

    def _fail(self, error: BaseException) -> None:
        """Tell the others; return to let the error be printed, unless it is not the first."""
        failure = self._described(error)
        try:
            board = self._connected()
            failure = (board and self._source(board, error)) or failure
            with self._ending:  # or the thread takes what is posted here for another's
                failure = board.post(failure) if board else failure
                if failure.rank == self._rank:
                    self._is_over.set()
        except dist.DistError:
            failure = self._without_store()
        if failure.rank != self._rank:
            self._end(failure)
        self._is_over.set()
        if failure.exit_code == 1:
            _say(f"rank {failure.rank} failed: {failure.said}")
        self._part()
        # What Python does at the end may wait for the others too.
        last = threading.Timer(FAREWELL_S, os._exit, [failure.exit_code])
        last.daemon = True
        last.start()

    def _source(self, board: Noticeboard, error: BaseException) -> Failure | None:
        """Return who is gone, if an error is but the echo of that."""
        if not _is_echo(error):
            return None
        before = board.beats()
        time.sleep(GRACE_S)  # the thread goes on, and ends this process if it learns the cause
        for rank, (old, new) in enumerate(zip(before, board.beats(), strict=True)):
            if old == new and rank != self._rank and not board.have_left([rank]):
                return Failure(rank, GONE)
        return None

    def _described(self, error: BaseException) -> Failure:
        text = str(error) if isinstance(error, UserError) else explain_death(error)
        if text is not None:
            return Failure(self._rank, " ".join(text.split()), exit_code=2)
        line = (str(error).strip() or "no message").splitlines()[0][:LINE_CHARS]
        said = f"{type(error).__name__}: {line}"
        with contextlib.suppress(OSError):  # such as the full disk that the error is about
            said += f" (traceback: {self._keep(error)})"
        return Failure(self._rank, said)

    def _keep(self, error: BaseException) -> Path:
        path = self.folder / "errors" / f"rank-{self._rank}.txt"
        with whole_file(path) as half:
            half.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return path

    def _end(self, failure: Failure) -> None:
        """End this process at once, wherever its first thread waits."""
        self._ending.acquire()  # for good: a second thread has nothing to add
        if self._is_over.is_set() and threading.current_thread() is self._thread:
            self._ending.release()
            return
        with contextlib.suppress(dist.DistError):  # there may be nobody left to tell
            failure = self._board.post(failure) if self._board else failure
        if self._speaks:
            _say(f"rank {failure.rank} failed: {failure.said}; the others were stopped")
        self._part(failure.rank)
        # At the very last: torch raises in the first thread when a worker is killed.
        kill_workers()
        os._exit(failure.exit_code)

    def _part(self, lost: int | None = None) -> None:
        """Leave; the first process, which keeps the store, leaves last and sees the others off."""
        self._leave()
        self._await(lambda: self._children_ended() and self._all_left(lost), FAREWELL_S)
        for child in self._children():
            child.kill()  # does nothing to those that have ended

    def _leave(self) -> None:
        with contextlib.suppress(dist.DistError):
            if (board := self._connected()) is not None:
                board.leave()

    def _await(self, is_so: Callable[[], bool], limit_s: float) -> None:
        until_s = time.monotonic() + limit_s
        with contextlib.suppress(dist.DistError):
            while not is_so() and time.monotonic() < until_s:
                time.sleep(0.05)

    def _all_left(self, lost: int | None = None) -> bool:
        """Whether the first process may go; others need not wait."""
        board = self._board
        if board is None or board.rank or (self._children() and self._children_ended()):
            return True
        return board.have_left(rank for rank in range(1, self.num_ranks) if rank != lost)

    def _children_ended(self) -> bool:
        return all(child.poll() is not None for child in self._children())


@dataclass(frozen=True)
class _Beats:
    """How many heartbeats of a process were counted, and since when it is no more."""

    count: int
    since_s: float


def _is_echo(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _ECHOES)


def _say(line: str) -> None:
    # Not print: the first thread may hold the stream's lock for ever.
    os.write(2, f"varlit: {line}\n".encode(errors="backslashreplace"))
