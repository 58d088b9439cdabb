"""Two processes on the CPU, started as a user would, learn what one process learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from varlit.cli import main as command_line

pytestmark = pytest.mark.slow

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "2"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
STAGE_1 = [
    *("tokenizer", "fit", "-c", "digits", *CPU),
    *("--data.batch_size", "8", "--reconstructions.every_n_steps", "0"),
    # Three scales leave one of the four phis unused, and the discriminator plays at once.
    *("--model.tokenizer.scales", "[1,2,4]", "--model.tokenizer.num_res_blocks", "1"),
    *("--model.tokenizer.channel_multipliers", "[1,1,1,1]"),
    *("--model.loss.disc_weight", "0.4", "--model.loss.disc_start", "0"),
    *("--model.loss.disc_warmup", "0", "--model.discriminator.channels", "32"),
    # The adaptive weight is a mean of ratios over processes, so not the ratio of one process.
    *("--model.loss.adaptive_weight", "false"),
]
STAGE_2 = [
    *("var", "fit", "-c", "digits", *CPU, "--data.batch_size", "8", "--data.tokens", "{cache}"),
    *("--model.var.depth", "2", "--model.var.width", "32", "--model.var.num_heads", "2"),
    # Processes drop different labels and blocks; without drops all of them do the same.
    *("--model.var.class_dropout", "0", "--model.var.drop_path", "0"),
    *("--samples.every_n_steps", "0"),
]


def run_alone(words):
    assert command_line.main(words) == 0


def run_two(words):
    """As a user would: the first process starts the second by the same command."""
    source = Path(__file__).resolve().parents[2] / "src"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-m", "varlit", *words, *TWO],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def fit(run, words, name, cache):
    """Train by the command line; returns the last checkpoint."""
    run([word.format(cache=cache) for word in words] + ["--name", name])
    return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)


def moments(checkpoint):
    """First moments of all optimizers: the gradients seen, which Adam's steps would blow up."""
    states = [o["state"] for o in checkpoint["optimizer_states"]]
    return [[state[i]["exp_avg"] for i in sorted(state)] for state in states]


@pytest.mark.parametrize(("words", "num_optimizers"), [(STAGE_1, 2), (STAGE_2, 1)], ids=["1", "2"])
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(
    tmp_path, monkeypatch, cache, words, num_optimizers
):
    monkeypatch.chdir(tmp_path)
    two = fit(run_two, words, "two", cache)
    one = fit(run_alone, words, "one", cache)
    assert two["global_step"] == one["global_step"] == 2
    assert two["state_dict"].keys() == one["state_dict"].keys()
    found, expected = moments(two), moments(one)
    assert len(found) == len(expected) == num_optimizers
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 10
        floor = 1e-4 * max(moment.norm().item() for moment in theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).norm().item() <= 0.02 * b.norm().item() + floor
    for name, value in one["state_dict"].items():
        if "lecam" in name:
            torch.testing.assert_close(two["state_dict"][name], value, atol=1e-6, rtol=1e-3)
