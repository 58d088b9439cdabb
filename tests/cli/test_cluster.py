"""The command files for clusters, with stand-ins for SLURM's own commands and for varlit."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment

from varlit.cli import main as command_line

FILES = Path(__file__).parents[2] / "docs" / "cluster"
WORDS = ["var", "fit", "-c", "d30", "--trainer", "fsdp"]


def stand_in(folder: Path, name: str, code: int = 0) -> None:
    """A command that notes its words; srun also runs them, as one task."""
    lines = ["#!/bin/bash", f'echo {name} "$@" >> {folder}/typed', f"exit {code}"]
    if name == "srun":
        lines[2] = 'exec "$@"'
    (folder / name).write_text("\n".join(lines) + "\n")
    (folder / name).chmod(0o755)


def typed(folder: Path, script: str, **variables: str) -> tuple[int, list[str]]:
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
    command = ["bash", str(FILES / script), *WORDS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (folder / "typed").read_text().splitlines()


@pytest.mark.parametrize(("code", "is_queued"), [(0, False), (2, False), (143, True)])
def test_a_slurm_job_queues_itself_again_if_it_was_stopped_by_the_clock(
    tmp_path: Path, code: int, is_queued: bool
) -> None:
    for name in ("srun", "scontrol"):
        stand_in(tmp_path, name)
    stand_in(tmp_path, "varlit", code)
    job = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "42"}
    found, lines = typed(tmp_path, "slurm.sbatch", **job)
    assert found == code
    fit = f"varlit {' '.join(WORDS)} --trainer.num_nodes 2 --trainer.devices 8"
    assert lines == [f"srun {fit}", fit, *(["scontrol requeue 42"] if is_queued else [])]


def test_torchrun_is_told_of_nodes_and_gpus_and_so_is_varlit(tmp_path: Path) -> None:
    stand_in(tmp_path, "snake")
    variables = {"NODES": "2", "GPUS": "4", "HEAD": "node7", "PYTHON": "snake"}
    code, (line,) = typed(tmp_path, "torchrun.sh", **variables)
    assert code == 0
    launch, _, fit = line.partition(" -m varlit ")
    assert "--nnodes 2 --nproc_per_node 4" in launch
    assert "--rdzv_endpoint node7:29500" in launch
    assert fit == f"{' '.join(WORDS)} --trainer.num_nodes 2 --trainer.devices 4"


class _BuiltError(Exception):
    """The trainer is built; no more is wanted."""


@pytest.mark.parametrize("word", ["auto", "2"])
def test_trainers_settings_for_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    built: dict[str, Any] = {}

    def build(self: LightningCLI, **settings: Any) -> Trainer:
        built.update(settings)
        raise _BuiltError

    monkeypatch.chdir(tmp_path)
    for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    monkeypatch.setattr(LightningCLI, "instantiate_trainer", build)
    words = ["tokenizer", "fit", "-c", "digits", "--trainer.devices", word]
    with pytest.raises(_BuiltError):
        command_line.main([*words, "--trainer.accelerator", "cpu"])
    (cluster,) = built["plugins"]
    assert isinstance(cluster, SLURMEnvironment)
    assert not cluster.auto_requeue
    if word == "2":
        assert built["strategy"]._ddp_kwargs == {"gradient_as_bucket_view": True}
    else:
        assert "strategy" not in built
