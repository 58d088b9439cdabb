"""Files of every kind changed at random, and the fuzzer itself: it sees what is wrong."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import command, trials
from tests.fuzz.command import KINDS, as_table, try_kind
from tests.fuzz.kinds import Kind
from varlit.errors import UserError

FEW, MANY = 20, 400


@pytest.mark.parametrize("kind", [k for k in KINDS if k.share >= 1], ids=lambda kind: kind.name)
def test_a_changed_file_is_refused_or_read_correctly(kind: Kind, tmp_path: Path) -> None:
    row = try_kind(kind, range(FEW), 7, str(tmp_path))
    assert not row.wrong, f"number {row.wrong[0][0]}: {row.wrong[0][1]}"
    assert row.counts.total() == FEW


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_many_changed_files_are_refused_or_read_correctly(kind: Kind, tmp_path: Path) -> None:
    row = try_kind(kind, range(FEW, FEW + round(MANY * min(kind.share, 1) ** 2)), 7, str(tmp_path))
    assert not row.wrong, f"number {row.wrong[0][0]}: {row.wrong[0][1]}"


def make_text(folder: Path) -> None:
    (folder / "a.txt").write_text("a sound file")


def toy(read: Callable[[str], Any]) -> Kind:
    """A kind whose reader meets only changed files with `read`."""

    def reader(folder: Path) -> Any:
        text = (folder / "a.txt").read_bytes().decode("latin-1")
        return text if text == "a sound file" else read(text)

    return Kind("toy", make_text, reader)


def hang(text: str) -> None:
    while True:
        time.sleep(0.01)


def refuse(text: str) -> None:
    raise UserError("no")


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda text: {}["x"], "KeyError"),
        (lambda text: text, "got"),
        (hang, "took more than"),
        (lambda text: bytearray(2**32), "MemoryError"),
        (lambda text: os._exit(3), "ended with 3"),
        (lambda text: os.kill(os.getpid(), 9), "ended with -9"),
        (lambda text: Path("../elsewhere").write_text(text), "elsewhere"),
        (lambda text: os.system("true"), "os.system"),
        (lambda text: os.mkdir("../folder"), "folder"),
    ],
    ids=["exception", "other", "hang", "memory", "exit", "kill", "file", "program", "folder"],
)
def test_whatever_else_happens_is_wrong(
    read: Callable[[str], Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LIMIT_S", 1)
    row = try_kind(toy(read), range(2), 0, str(tmp_path))
    assert (row.counts["wrong"], row.counts.total()) == (2, 2)
    assert all(told in reason for _, reason in row.wrong)
    assert [path.name for path in tmp_path.iterdir() if "else" in path.name] == []


def test_refusals_and_equal_content_are_right(tmp_path: Path) -> None:
    row = try_kind(toy(refuse), range(9), 0, str(tmp_path))
    assert row.counts == {"refused": 9}
    row = try_kind(toy(lambda text: "a sound file"), range(9, 12), 0, str(tmp_path))
    assert row.counts == {"read": 3}
    assert as_table([row], 1.4).splitlines()[-1] == "| **All** | 3 | 0 | 3 |  | 0 | 1 |"


def test_a_number_stands_for_one_change(tmp_path: Path) -> None:
    first, again = (trials.Folder(toy(refuse), tmp_path / name) for name in "ab")
    changes = [first.change(number, 3)[1] for number in range(20)]
    assert changes == [again.change(number, 3)[1] for number in range(20)]
    assert len(set(changes)) > 10
    assert changes != [first.change(number, 4)[1] for number in range(20)]


def test_the_command_counts_all_kinds_and_keeps_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "KINDS", (toy(refuse), toy(lambda text: text)))
    words = ["--count", "10", "--processes", "1", "--out", str(tmp_path)]
    assert command.main(words) == 1, "a wrong one is told by the exit code"
    told = capsys.readouterr().out
    assert "| **All** | 10 | 5 | 0 |  | 5 |" in told
    assert "toy, number 0:\ngot " in told
    kept = (tmp_path / "fuzz-cpu.md").read_text()
    assert "`python -m tests.fuzz --count 10 --seed 0`" in kept
