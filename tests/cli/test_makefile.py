"""The Makefile: what it hands on, and what it refuses to swallow."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What make would run; settings of a make around the tests are not inherited."""
    names = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GPUS", "CONF", "NAME", "DATA", "ARGS"}
    environment = {key: value for key, value in os.environ.items() if key not in names}
    command = ["make", "-n", "-o", ".venv/.ready", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_paths_with_spaces_stay_whole() -> None:
    done = make("train-tokenizer", "DATA=my photos/", "CONF=my dir/mine.yaml", "NAME=a b")
    words = shlex.split(done.stdout)
    assert {"my photos/", "my dir/mine.yaml", "a b"} <= set(words)
    words = shlex.split(make("train-var", "CONF=my dir/my own.yaml").stdout)
    assert words[words.index("--name") + 1] == "var-my own"


def test_no_gpus_named_means_all() -> None:
    words = shlex.split(make("train-var", "GPUS=").stdout)
    assert words[words.index("--gpus") + 1] == "auto"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["cache-tokens", "DATA=x"], "NAME=run"),
        (["eval-fid", "DATA=x"], "NAME=run"),
        (["demo", "GPUS=1"], "CUDA_VISIBLE_DEVICES="),
        (["sample", "GPUS=0"], "CUDA_VISIBLE_DEVICES="),
    ],
)
def test_a_setting_that_would_be_ignored_stops_make(words: list[str], remedy: str) -> None:
    done = make(*words)
    assert done.returncode == 2
    assert remedy in done.stderr


def test_targets_in_a_row_share_their_settings() -> None:
    assert make("train-tokenizer", "cache-tokens", "DATA=x").returncode == 0
