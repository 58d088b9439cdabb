"""Two processes on the CPU that hold half of the weights each learn what one process learns."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from varlit.callbacks.roll_back import last_good
from varlit.cli import main as command_line
from varlit.cli.files.consolidate import consolidate
from varlit.models.files import load_var
from varlit.training.checkpoint_files import damage
from varlit.training.sealing import read_seal, write_sealed
from varlit.training.shard_files import SHARDS, SUMS, in_parts

STEPS = 7
SOURCE = Path(__file__).resolve().parents[2] / "src"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
WORKER = str(Path(__file__).with_name("sharded_worker.py"))


def python(*words):
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def read(path):
    return torch.load(path, weights_only=True)


def assert_alike(found, expected):
    """Same step, weights, averages and AdamW's moments, up to the order of sums."""
    assert found.keys() == expected.keys()
    assert found["global_step"] == expected["global_step"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-4, atol=1e-5)
    (ours,), (theirs,) = found["optimizer_states"], expected["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, slots in theirs["state"].items():
        for slot, value in slots.items():
            torch.testing.assert_close(ours["state"][number][slot], value, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """One process at once; two sharded ones, whole and in parts, and each resumed by the other."""
    folder = tmp_path_factory.mktemp("runs")
    base = {"cache": str(cache), "folder": str(folder), "steps": STEPS}
    alone = [
        base | {"name": "one"},
        base | {"name": "accumulated", "accumulate": 2},
        base | {"name": "one-bf16", "precision": "bf16-mixed"},
    ]
    python(WORKER, json.dumps(alone))
    two = base | {"num_devices": 2}
    fsdp, half = two | {"strategy": "fsdp"}, str(folder / "one-half.ckpt")
    jobs = [
        fsdp | {"name": "fsdp", "reshard": False},
        fsdp | {"name": "parts", "parts": True},
        fsdp | {"name": "parts-resumed", "resume": str(folder / "parts-half.ckpt")},
        fsdp | {"name": "fsdp-accumulated", "accumulate": 2},
        fsdp | {"name": "from-one", "resume": half},
        two | {"name": "ddp-from-one", "strategy": "ddp", "resume": half},
        fsdp | {"name": "bf16", "precision": "bf16-mixed"},
    ]
    python(*LAUNCHER, WORKER, json.dumps(jobs))
    return folder


@pytest.mark.parametrize(
    "name",
    ["fsdp", "from-one", "ddp-from-one", "parts-resumed", "accumulated", "fsdp-accumulated"],
)
def test_the_same_global_batches_over_processes_or_in_parts_learn_the_same(runs, name):
    assert_alike(read(runs / f"{name}.ckpt"), read(runs / "one.ckpt"))


def test_bf16_gathers_learn_what_autocast_on_one_process_learns(runs):
    found, expected = (read(runs / f"{name}.ckpt")["state_dict"] for name in ("bf16", "one-bf16"))
    start = read(runs / "one-half.ckpt")["state_dict"]
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        moved = (value - start[name]).norm().item()
        assert (found[name] - value).norm().item() <= 0.2 * moved + 1e-4, name


def test_parts_become_one_file_that_one_process_goes_on_from(runs, cache, tmp_path):
    index = read(runs / "parts-half.ckpt")
    assert in_parts(index)
    assert index["state_dict"] == {}
    assert consolidate(runs / "parts-half.ckpt")
    assert not (runs / "parts-half.parts").exists()
    assert_alike(read(runs / "parts-half.ckpt"), read(runs / "one-half.ckpt"))
    assert not consolidate(runs / "parts-half.ckpt")
    job = {"cache": str(cache), "folder": str(tmp_path), "steps": STEPS, "name": "on"}
    python(WORKER, json.dumps([job | {"resume": str(runs / "parts-half.ckpt")}]))
    assert_alike(read(tmp_path / "on.ckpt"), read(runs / "one.ckpt"))


@pytest.mark.parametrize("place", [("state_dict",), ("optimizer_states", 0, "state")])
def test_a_run_does_not_go_back_to_parts_with_nan(runs, tmp_path, place):
    shutil.copy(runs / "parts.ckpt", tmp_path)
    shutil.copytree(runs / "parts.parts", tmp_path / "parts.parts")
    assert last_good(tmp_path, before_step=STEPS + 1) == tmp_path / "parts.ckpt"
    index = read(tmp_path / "parts.ckpt")
    file = tmp_path / index[SHARDS][1]
    part = read(file)
    found = (rows for key, rows in part.items() if key[: len(place)] == place and rows.numel())
    next(found).fill_(math.nan)  # of a small weight the second process has no rows
    write_sealed(part, file)
    index[SUMS][1] = read_seal(file).sha256
    write_sealed(index, tmp_path / "parts.ckpt")
    assert damage(tmp_path / "parts.ckpt") == ""
    assert last_good(tmp_path, before_step=STEPS + 1) is None


def test_what_is_exported_and_drawn_is_whole(runs):
    exported = load_var(runs / "fsdp-model").var.state_dict()
    saved = read(runs / "fsdp.ckpt")["state_dict"]
    for name, value in exported.items():
        assert torch.equal(value, saved[f"average.{name}"]), "the averaged weights"


WORDS = ["var", "fit", "-c", "digits", "--trainer.max_steps", "2", "--data.batch_size", "8"]
WORDS += ["--model.var.depth", "2", "--model.var.width", "32", "--model.var.num_heads", "2"]
WORDS += ["--samples.every_n_steps", "1", "--model.optim.ema_decay", "0.9"]
SHARDED = ["--trainer", "fsdp", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]


def test_torchrun_shards_by_the_command_line_and_parts_are_refused_elsewhere(
    tmp_path, monkeypatch, cache, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "--data.tokens", str(cache), "--name", "a"]
    parts = ["--trainer.strategy.save_in_parts", "true"]
    python(*LAUNCHER, "-m", "varlit", *words, *SHARDED, *parts)
    assert list(Path("runs/a/pictures/samples").iterdir())
    assert in_parts(read("runs/a/checkpoints/last.ckpt"))
    assert command_line.main(["var", "validate", "--name", "a"]) == 2
    assert "varlit consolidate" in capsys.readouterr().err
    assert command_line.main(["consolidate", "a"]) == 0
    assert command_line.main(["var", "validate", "--name", "a"]) == 0
