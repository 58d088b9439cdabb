"""Commands that are started again until they end well, whatever kills them in between."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.pipeline import Stage, words_of

MARK = "VARLIT_TEST_ID"
SOURCE = Path(__file__).resolve().parents[2] / "src"
LIMIT_S = 900.0
"""A command that was told to stop, or left alone, and has not ended by then hangs."""
MOST_STARTS = 400
STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KINDS = (*STOPS, signal.SIGUSR1)
LOGS = "logs"


@dataclass(frozen=True)
class Point:
    """A signal in the middle of a call; see `starter.arm`."""

    place: str
    call: int
    number: int


@dataclass(frozen=True)
class Kill:
    """A signal that was sent, so many seconds after the command was started."""

    number: int
    stage: str
    after_s: float


class BrokenOffError(Exception):
    """A command that nobody killed failed, or one that was told to stop did not."""


class Starter:
    """The process that forks commands, and all that descends from it."""

    def __init__(self, cache: Path) -> None:
        self.mark = uuid.uuid4().hex
        settings = {MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        settings |= {"VARLIT_CACHE": str(cache), "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("starter.py"))],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._unread = b""
        self._answer(LIMIT_S)

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        for number in (*self.left(), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait()

    def start(self, words: list[str], folder: Path, log: Path, point: Point | None = None) -> int:
        """Start a command; returns the number of its process."""
        armed = [point.place, point.call, int(point.number)] if point else None
        job = {"words": words, "folder": str(folder), "log": str(log), "point": armed}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        answer = self._answer(LIMIT_S)
        assert answer is not None
        return int(answer)

    def wait(self, limit_s: float) -> int | None:
        """Exit code of the running command, minus the signal it died of; None = it runs still."""
        answer = self._answer(limit_s)
        return None if answer is None else int(answer)

    def left(self) -> list[int]:
        """Processes of ours that live, besides the starter."""
        found = []
        for place in Path("/proc").iterdir():
            if not place.name.isdigit() or int(place.name) == self._process.pid:
                continue
            try:
                variables = (place / "environ").read_bytes().split(b"\0")
                is_zombie = ") Z " in (place / "stat").read_text()
            except OSError:
                continue
            if f"{MARK}={self.mark}".encode() in variables and not is_zombie:
                found.append(int(place.name))
        return found

    def orphans(self, limit_s: float = 20.0) -> list[int]:
        """Processes that stay; loaders' workers look every five seconds whether they may go."""
        end_s = time.monotonic() + limit_s
        while (found := self.left()) and time.monotonic() < end_s:
            time.sleep(0.2)
        return found

    def _answer(self, limit_s: float) -> str | None:
        assert self._process.stdout is not None
        pipe, end_s = self._process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end_s - time.monotonic()))
            if not ready:
                return None
            read = os.read(pipe, 4096)
            if not read:
                raise BrokenOffError("the process that starts the commands is gone")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


class Moments:
    """When the next signal comes, and which; time runs while commands run."""

    def __init__(
        self,
        seed: int,
        mean_s: float,
        kinds: tuple[int, ...] = KINDS,
        most: int | None = None,
        end_s: float | None = None,
    ) -> None:
        """Plan the signals.

        Args:
            seed: Of the moments and kinds.
            mean_s: Seconds from one to the next on average, spread evenly from 0 to twice that.
            kinds: Signals to draw from.
            most: How many at most.
            end_s: None after this time of the monotonic clock.
        """
        self._draw, self._mean_s, self._kinds = random.Random(seed), mean_s, kinds
        self._most, self._end_s = most, end_s
        self._left_s = self._draw.uniform(0, 2 * mean_s)
        self.sent: list[Kill] = []

    @property
    def is_over(self) -> bool:
        late = self._end_s is not None and time.monotonic() > self._end_s
        return late or (self._most is not None and len(self.sent) >= self._most)

    @property
    def left_s(self) -> float:
        """Seconds of running until the next signal."""
        return LIMIT_S if self.is_over else max(self._left_s, 0.0)

    def spend(self, seconds: float) -> None:
        """Count time in which a command ran."""
        self._left_s -= seconds

    def fire(self, stage: str, process: int, after_s: float) -> int:
        """Send the signal that is due."""
        number = self._draw.choice(self._kinds)
        with suppress(ProcessLookupError):  # it has ended this very moment
            os.kill(process, number)
        self.sent.append(Kill(number, stage, after_s))
        self._left_s = self._draw.uniform(0, 2 * self._mean_s)
        return number


def run_through(
    starter: Starter,
    stages: tuple[Stage, ...],
    folder: Path,
    moments: Moments | None = None,
    points: tuple[Point, ...] = (),
) -> int:
    """Run each stage to its end, by the same command again and again.

    Args:
        starter: Forks the commands.
        stages: What to run.
        folder: Where.
        moments: Signals by time; None = none.
        points: One signal a start, in the middle of a call, one after the other.

    Returns:
        How many starts it took.

    Raises:
        BrokenOffError: If a command failed or hangs; with the end of its log.
    """
    quiet = moments or Moments(0, 1.0, most=0)
    waiting = list(points)
    logs = folder.parent / f"{folder.name}-{LOGS}"
    logs.mkdir(exist_ok=True)
    num_starts = 0
    for stage in stages:
        log = logs / f"{stage.name.replace(' ', '-')}.log"
        for _ in range(MOST_STARTS):
            num_starts += 1
            point = waiting.pop(0) if waiting else None
            process = starter.start(words_of(stage), folder, log, point)
            if _ends_well(starter, stage, process, log, quiet, point):
                break
        else:
            raise BrokenOffError(f"{stage.name} has not ended in {MOST_STARTS} starts")
    if waiting:
        raise BrokenOffError(f"never came to {waiting[0]}")
    return num_starts


def _ends_well(
    starter: Starter, stage: Stage, process: int, log: Path, moments: Moments, point: Point | None
) -> bool:
    """Whether a command came to its end; otherwise it was killed, and can be started again."""
    began_s = waited_s = time.monotonic()
    numbers = [] if point is None else [point.number]
    while (code := starter.wait(limit := moments.left_s)) is None:
        now_s = time.monotonic()
        moments.spend(now_s - waited_s)
        waited_s = now_s
        if limit >= LIMIT_S:
            raise BrokenOffError(_told(f"{stage.name} hangs", log))
        numbers.append(moments.fire(stage.name, process, now_s - began_s))
        if numbers[-1] in STOPS:
            code = starter.wait(LIMIT_S)
            break
    moments.spend(time.monotonic() - waited_s)
    if code is None:
        raise BrokenOffError(_told(f"{stage.name} hangs after {numbers}", log))
    # 1 is what Lightning makes of a KeyboardInterrupt before the first step.
    expected = {c for n in numbers for c in (-n, 128 + n, *([1] if n == signal.SIGINT else []))}
    if code and code not in expected:
        raise BrokenOffError(_told(f"{stage.name} ended with {code} after {numbers}", log))
    return code == 0


def _told(what: str, log: Path) -> str:
    lines: list[Any] = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([what, *lines[-25:]])
