"""The line to type next: every flag but seed and picture."""

import shlex
from pathlib import Path

import pytest

from varlit.cli.sampling.next_line import next_line, of_seed


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["run", "--seed", "3", "--out", "a.png", "--gif"], ["run", "--gif"]),
        (["--seed=3", "run", "--out=a.png", "--seed", "4"], ["run"]),
        (["run", "--save_each", "--seeds", "x"], ["run", "--save_each", "--seeds", "x"]),
    ],
)
def test_flags_are_kept_but_for_seed_and_picture(typed: list[str], kept: list[str]):
    words = shlex.split(next_line("sample", typed, 8, Path("my dir/a.png")))
    assert words[2:] == ["sample", *kept, "--seed", "8", "--out", "my dir/a-seed8.png"]


def test_what_follows_two_dashes_stays_behind_them():
    words = shlex.split(next_line("edit", ["--seed", "1", "--", "run", "-x.png"], 2, Path("a.png")))
    assert words[3:] == ["--seed", "2", "--out", "a-seed2.png", "--", "run", "-x.png"]


def test_a_seed_in_the_name_is_replaced():
    assert of_seed(Path("a-seed2.png"), 6) == Path("a-seed6.png")
    assert of_seed(Path("a-seed-2.png"), -1) == Path("a-seed-1.png")
    assert of_seed(Path("a-seedling.png"), 6) == Path("a-seedling-seed6.png")
