"""A worker of a data loader that dies is named, with what it was reading and what helps."""

import os
import signal
from typing import Any

import pytest
import torch
from torch.utils.data._utils import signal_handling

from varlit.cli import main as command_line
from varlit.data.loader import ResumableLoader
from varlit.data.order import BatchIndex, EpochBatchSampler
from varlit.data.worker_deaths import NAME_BYTES, WorkerNotes, explain_death, note_reading


class Dying:
    """Has a row that kills whoever reads it."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        for row in index.ids:
            note_reading(self.name.format(row=row))
            if row == 13:
                os.kill(os.getpid(), self.number)
        return {"id": torch.from_numpy(index.ids)}


def death(
    number: int, name: str = "photos/{row}.jpg", num_workers: int = 2, missed: bool = False
) -> str:
    """Read in order until it kills the worker; return what is said of it.

    Args:
        number: The signal.
        name: What a row is called.
        num_workers: Worker processes.
        missed: The queue sees the death before torch's handler of SIGCHLD does.
    """
    loader = ResumableLoader(
        Dying(number, name), EpochBatchSampler(24, 4, shuffle=False), num_workers
    )
    signal_handling._set_SIGCHLD_handler()  # done once a process, and not again under SIG_DFL
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        if missed:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with pytest.raises(RuntimeError, match="unexpectedly" if missed else None) as caught:
            list(loader)
        loader._iterator = None  # the handler would speak of the dead one again as the other ends
    finally:
        signal.signal(signal.SIGCHLD, handler)
    said = explain_death(caught.value)
    assert said is not None, caught.value
    return said


@pytest.mark.parametrize(
    ("number", "cause", "cure"),
    [
        (signal.SIGKILL, "by the kernel because memory was full", "--data.num_workers 1"),
        (signal.SIGBUS, "/dev/shm is most likely full", "--data.num_workers 0"),
        (signal.SIGSEGV, "over a broken file", "varlit doctor --data PATH"),
    ],
)
def test_a_death_says_who_over_what_why_and_what_helps(number: int, cause: str, cure: str) -> None:
    said = death(number)
    assert said.startswith("worker 1 of the data loader's 2 (process "), "row 13 is in batch 3"
    assert " died while it read 'photos/13.jpg' (" in said
    assert cause in said
    assert cure in said
    assert "\n" not in said


def test_a_death_that_the_handler_missed_is_explained_too() -> None:
    said = death(signal.SIGSEGV, missed=True)
    assert said.startswith("worker 1 of the data loader's 2 (process "), "row 13 is in batch 3"
    assert " died while it read 'photos/13.jpg' (Segmentation fault): a decoder " in said


def test_a_cause_that_says_how_is_heard_before_the_queue_that_does_not() -> None:
    error = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
    assert "(process 12) died (nothing says how): " in (explain_death(error) or "")
    error.__cause__ = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert "(process 12) died (Killed): " in (explain_death(error) or "")


def test_a_name_of_any_length_and_bytes_is_cut_and_escaped() -> None:
    notes = WorkerNotes(2)
    notes.write(0, "\udcff" + "x" * 2 * NAME_BYTES)
    notes.write(1, "short")
    assert notes.read(0) == r"\xff" + "x" * (NAME_BYTES - 2)
    assert notes.read(1) == "short"


def test_a_source_without_names_leaves_them_out() -> None:
    assert " died (Killed): " in death(signal.SIGKILL, "")


def test_other_errors_are_no_deaths() -> None:
    assert explain_death(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_shared_memory_that_is_full_is_said() -> None:
    error = RuntimeError("unable to write to file </torch_12_34_5>: No space left on device (28)")
    assert "/dev/shm" in (explain_death(error) or "")


def test_the_command_line_says_a_death_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(verb: str, argv: list[str]) -> int:
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    monkeypatch.setattr(command_line, "_run", die)
    assert command_line.main(["info"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("varlit: a worker of the data loader (process 12) died (Killed)")
