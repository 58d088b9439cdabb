"""Time rivals side by side: warmed up, interleaved, medians and spread.

Ratios are taken within a round, where everything ran within seconds of each other, so a machine
that slows down over the run hits all rivals alike.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
from threadpoolctl import threadpool_limits

# Runs something that many times in a row and returns seconds a run.
Lap = Callable[[int], float]

MOST_RUNS_PER_LAP = 1000


@dataclass(frozen=True)
class Rival:
    """Something to be timed: its name in the table and how to set it up."""

    name: str
    build: Callable[[], Lap]
    num_images: int
    """Images that one run works through; 0 = it is not about images."""
    reference: str = ""
    """Name of the rival that it is compared with; "" = none."""
    is_counted: bool = True
    """Whether its operations are set against the card's limit in bf16."""
    flops_per_image: float = 0.0
    """Operations by formula; 0 = torch counts those of a run."""
    group: str = ""
    """Rivals of one group, next to each other in the list, race; then they are let go."""
    extra: dict[str, Callable[[float], str]] = field(default_factory=dict)
    """More cells of its row by their header, made of the median seconds of a run."""


@dataclass(frozen=True)
class Timing:
    """What the stopwatch says of one rival."""

    rival: Rival
    laps_s: tuple[float, ...]
    """Seconds a run, one number for each round; none where it failed."""
    failure: str = ""
    """Why it was not timed, in a few words."""

    @property
    def median_s(self) -> float:
        """Seconds a run, the median over rounds."""
        return statistics.median(self.laps_s)

    @property
    def spread(self) -> float:
        """Width of the middle half of the rounds over the median."""
        if len(self.laps_s) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.laps_s, n=4, method="inclusive")
        return (high - low) / self.median_s

    @property
    def images_per_s(self) -> float:
        """Images that go through in a second."""
        return self.rival.num_images / self.median_s

    def speed_over(self, reference: "Timing") -> float:
        """How many times as fast as the reference: the median of the rounds' ratios."""
        pairs = zip(reference.laps_s, self.laps_s, strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)


class NotTimedError(Exception):
    """A rival cannot run here; its row says why, in the few words of this error."""


class Stopwatch:
    """Seconds between `start` and `stop` on the device, whatever it still had to do before."""

    cpu_clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        if self.is_cuda:
            self._begin = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)
        self._began_s = 0.0

    def start(self) -> None:
        """Wait for the device, then begin."""
        if self.is_cuda:
            torch.cuda.synchronize()
            self._begin.record()
        self._began_s = self.cpu_clock()

    def stop(self) -> float:
        """Wait for what was begun, and return seconds."""
        if self.is_cuda:
            self._end.record()
            self._end.synchronize()
            return self._begin.elapsed_time(self._end) / 1e3
        return self.cpu_clock() - self._began_s


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, and count the processor's time instead of the clock's.

    What other processes take from the machine then hardly shows in a ratio.
    """
    num_threads, clock = torch.get_num_threads(), Stopwatch.cpu_clock
    torch.set_num_threads(1)
    Stopwatch.cpu_clock = staticmethod(time.process_time)
    try:
        with threadpool_limits(1):  # of numpy and scipy
            yield
    finally:
        torch.set_num_threads(num_threads)
        Stopwatch.cpu_clock = staticmethod(clock)


def lap_of(function: Callable[[], object], device: torch.device, num_skipped: int = 0) -> Lap:
    """Lap that calls a plain function, `num_skipped` times before the clock starts."""
    watch = Stopwatch(device)

    def lap(num_runs: int) -> float:
        for _ in range(num_skipped):
            function()
        watch.start()
        for _ in range(num_runs):
            function()
        return watch.stop() / num_runs

    return lap


def race(
    rivals: Sequence[Rival], rounds: int, least_lap_s: float = 0.2, warmup_runs: int = 2
) -> list[Timing]:
    """Time the rivals of each group in turn, round after round: A B C, A B C, ...

    What does not fit into the GPU's memory leaves the race, says so, and the others go on.

    Args:
        rivals: Who runs; all of a group are set up before the first is timed.
        rounds: Laps of each.
        least_lap_s: A lap repeats what is shorter until it lasts about this long.
        warmup_runs: Runs of each before the first round.
    """
    assert len({rival.name for rival in rivals}) == len(rivals), "names of rivals are unique"
    timings: list[Timing] = []
    for _, group in groupby(rivals, key=lambda rival: rival.group):
        timings += _race_group(list(group), rounds, least_lap_s, warmup_runs)
        _let_go()
    return timings


def _race_group(
    rivals: Sequence[Rival], rounds: int, least_lap_s: float, warmup_runs: int
) -> list[Timing]:
    laps: dict[str, Lap] = {}
    runs: dict[str, int] = {}
    failures: dict[str, str] = {}
    for rival in rivals:
        with _noting(failures, rival.name):
            laps[rival.name] = rival.build()
    for name, lap in list(laps.items()):
        with _noting(failures, name):
            seconds = lap(warmup_runs)
            # The first runs may have compiled and tuned; ask again what a run takes.
            seconds = min(seconds, lap(1))
            runs[name] = min(math.ceil(least_lap_s / max(seconds, 1e-9)), MOST_RUNS_PER_LAP)
        if name in failures:
            del laps[name], lap
            _let_go()
    taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for name, lap in laps.items():
            taken[name].append(lap(max(1, runs[name])))
    return [Timing(r, tuple(taken[r.name]), failures.get(r.name, "")) for r in rivals]


@contextmanager
def _noting(failures: dict[str, str], name: str) -> Iterator[None]:
    """Write down why a rival leaves the race.

    In words: the error itself would hold on to the memory that the attempt had taken.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        failures[name] = "out of memory"
    except NotTimedError as error:
        failures[name] = str(error)


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
