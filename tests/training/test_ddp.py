"""Two processes on the CPU, started as a user would, learn what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from varlit.cli import main as command_line

pytestmark = pytest.mark.slow

STEPS = 4
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", str(STEPS)]
CPU += ["--trainer.log_every_n_steps", "1"]
DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
STATIC = ["--trainer.devices", "2", "--trainer.strategy", "DDPStrategy"]
STATIC += ["--trainer.strategy.static_graph", "true"]
IN_PARTS = ["--trainer.accumulate_grad_batches", "2"]
STAGE_1 = [
    *("tokenizer", "fit", "-c", "digits", *CPU),
    *("--data.batch_size", "8", "--reconstructions.every_n_steps", "0"),
    # Three scales leave one of the four phis unused; the discriminator joins in at the third step.
    *("--model.tokenizer.scales", "[1,2,4]", "--model.tokenizer.num_res_blocks", "1"),
    *("--model.tokenizer.channel_multipliers", "[1,1,1,1]"),
    *("--model.loss.disc_weight", "0.4", "--model.loss.disc_start", "0.5"),
    *("--model.loss.disc_warmup", "0", "--model.discriminator.channels", "32"),
    *("--model.optim.lr", "1e-2"),
    # Codes are replaced by all processes and parts together.
    *("--model.codebook.restart_below", "0.2"),
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
        [sys.executable, "-m", "varlit", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def fit(run, words, name, cache):
    """Train by the command line; returns the last checkpoint and the logged curve."""
    run([word.format(cache=cache) for word in words] + ["--name", name])
    folder = Path("runs", name)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    curve = [line for line in map(json.loads, lines) if not any("val/" in tag for tag in line)]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint, curve


def moments(checkpoint):
    """First moments: the gradients seen, which Adam's steps would blow up."""
    (optimizer,) = checkpoint["optimizer_states"]
    return [optimizer["state"][i]["exp_avg"] for i in sorted(optimizer["state"])]


def assert_alike(two, one):
    (found, curve), (expected, whole_curve) = two, one
    assert found["global_step"] == expected["global_step"] == STEPS
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    ours, theirs = moments(found), moments(expected)
    assert len(ours) == len(theirs) > 10
    floor = 1e-4 * max(moment.norm().item() for moment in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm().item() <= 0.03 * b.norm().item() + floor
    for name, value in expected["state_dict"].items():
        if "lecam" in name:
            torch.testing.assert_close(found["state_dict"][name], value, atol=1e-6, rtol=1e-3)
    for ours, theirs in zip(curve, whole_curve, strict=True):
        assert ours.keys() == theirs.keys()
        for tag, value in theirs.items():
            if tag.startswith(("speed/", "memory/")):
                continue
            rel = 0.03 if "norm" in tag else 5e-3
            assert ours[tag] == pytest.approx(value, rel=rel, abs=1e-4), tag


def test_the_tokenizer_learns_the_same_on_two_processes(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    one = fit(run_alone, STAGE_1, "one", cache)
    assert [line["step"] for line in one[1]] == list(range(1, STEPS + 1))
    assert ["gan/disc_loss" in line for line in one[1]] == [False, False, True, True]
    assert_alike(fit(run_two, [*STAGE_1, *DDP], "two", cache), one)


@pytest.mark.soak
def test_the_tokenizer_learns_the_same_on_two_processes_in_parts(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    # The adaptive weight is that of all processes, but of each part by itself.
    words = [*STAGE_1, "--model.loss.adaptive_weight", "false"]
    one = fit(run_alone, words, "one-fixed", cache)
    for name, way in {"parts": DDP, "static-parts": STATIC}.items():
        assert_alike(fit(run_two, [*words, *way, *IN_PARTS], name, cache), one)


def test_the_transformer_learns_the_same_on_two_processes(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    (two, _), (one, _) = (
        fit(run, [*STAGE_2, *more], name, cache)
        for run, more, name in ((run_two, DDP, "two"), (run_alone, [], "one"))
    )
    assert_alike((two, []), (one, []))
