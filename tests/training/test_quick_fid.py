"""Quick FID while training: it says what it found, disturbs nothing and never ends a run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from varlit.callbacks.fid import QuickFID
from varlit.callbacks.record import RunRecord
from varlit.errors import UserError
from varlit.metrics.networks import FeatureNetwork, Features, register_network

pytestmark = pytest.mark.filterwarnings("ignore")


class Faces(nn.Module):
    """A few pixels; out of order from some look on where it is told so."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.num_looks, self.fails_at = 0, 10**9

    def forward(self, images):
        self.num_looks += 1
        if self.num_looks >= self.fails_at:
            raise RuntimeError("the network is out of order")
        flat = images.float().flatten(1) / 255 * self.weight
        return Features(flat[:, :5], flat[:, :3], flat[:, -4:])


@pytest.fixture
def faces(monkeypatch, tmp_path):
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))
    module = Faces()
    register_network("faces", lambda weights: FeatureNetwork(module, "faces"))
    pixels = np.random.default_rng(0).integers(0, 255, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", pixels)
    return module


@pytest.fixture
def quick(faces, tmp_path):
    def make(**settings):
        given = {"every_n_steps": 2, "num_images": 12, "network": "faces", "batch_size": 6}
        return QuickFID(**(given | {"reference": str(tmp_path / "real.npz")} | settings))

    return make


def fit(make_var_module, make_trainer, tokens, *callbacks, **settings):
    module = make_var_module()
    trainer = make_trainer(*callbacks, max_steps=4, **settings)
    trainer.fit(module, tokens)
    return module, trainer


def test_figures_are_told_and_logged_at_their_steps(
    make_var_module, make_trainer, tokens, quick, tmp_path, capsys
):
    logger = CSVLogger(tmp_path, "run", "")
    settings = {"logger": logger, "log_every_n_steps": 3}
    fit(make_var_module, make_trainer, tokens, RunRecord(), quick(), **settings)
    said = capsys.readouterr().out
    assert "step 2: quick Frechet distance (faces)" in said
    assert "step 4: quick Frechet distance (faces)" in said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = {line["step"]: line for line in map(json.loads, lines) if "fid/" in str(line)}
    assert told.keys() == {2, 4}
    assert told[2]["fid/quick_frechet_faces"] > 0


def test_accumulated_batches_are_one_step(make_var_module, make_trainer, tokens, quick, capsys):
    settings = {"accumulate_grad_batches": 2}
    fit(make_var_module, make_trainer, tokens, quick(every_n_steps=3), **settings)
    assert capsys.readouterr().out.count("quick Frechet") == 1


def test_training_with_it_equals_training_without_and_no_checkpoint_holds_the_network(
    make_var_module, make_trainer, tokens, quick, tmp_path, assert_same
):
    watched, trainer = fit(make_var_module, make_trainer, tokens, quick())
    plain, _ = fit(make_var_module, make_trainer, tokens)
    assert_same(watched.state_dict(), plain.state_dict())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    content = torch.load(tmp_path / "it.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in content["state_dict"]} == {"network", "average"}
    assert content["callbacks"] == {}


def test_an_evaluation_that_fails_costs_a_line_and_not_the_training(
    make_var_module, make_trainer, tokens, quick, faces, capsys
):
    class Breaks(QuickFID):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            faces.fails_at = faces.num_looks + 2

    broken = quick()
    broken.__class__ = Breaks
    _, trainer = fit(make_var_module, make_trainer, tokens, broken)
    assert trainer.global_step == 4
    said = capsys.readouterr().out
    assert "step 2: no quick FID (the network is out of order); training goes on" in said
    assert "step 4: no quick FID" in said


def test_a_reference_that_is_not_there_is_refused_before_the_first_step(
    make_var_module, make_trainer, tokens, quick, tmp_path
):
    with pytest.raises(UserError, match=r"--fid\.reference .*no.npz: no such file"):
        fit(make_var_module, make_trainer, tokens, quick(reference=str(tmp_path / "no.npz")))


def test_it_is_off_unless_asked_for(make_var_module, make_trainer, tokens, capsys):
    fit(make_var_module, make_trainer, tokens, QuickFID())
    assert "FID" not in capsys.readouterr().out


def run_worker(cache, reference, *words):
    here = Path(__file__).resolve()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, here.with_name("quick_fid_worker.py"), cache, reference, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_find_what_one_finds_with_whole_and_with_sharded_weights(
    cache, faces, tmp_path
):
    reference = tmp_path / "real.npz"
    found = {}
    for words in (("1", "auto"), ("2", "ddp"), ("2", "fsdp")):
        said = run_worker(cache, reference, *words)
        found[words] = re.findall(r"(step \d): quick Frechet distance \(pixels\) ([\d.]+)", said)
    one, *others = found.values()
    assert [step for step, _ in one] == ["step 2", "step 4"]
    for other in others:
        assert [float(value) for _, value in other] == pytest.approx(
            [float(value) for _, value in one], rel=2e-3
        )


@pytest.mark.slow
def test_a_network_that_fails_in_one_process_ends_neither(cache, faces, tmp_path):
    said = run_worker(cache, tmp_path / "real.npz", "2", "ddp", "fails")
    assert "step 2: quick Frechet distance" in said
    assert said.count("step 4: no quick FID (out of order); training goes on") == 1
    assert said.count("ended at 4") == 2
