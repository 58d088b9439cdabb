"""Back to the weights of an earlier checkpoint, within a running training."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from varlit.callbacks.record import run_dir
from varlit.training.checkpoint_files import candidates, damage, read_checkpoint
from varlit.training.stage import StageModule


def last_good(folder: Path, before_step: int) -> Path | None:
    """The newest whole checkpoint of an earlier step whose weights are finite; None without one."""
    for path in candidates(folder):
        if damage(path):
            continue
        content = read_checkpoint(path)
        weights = content["state_dict"].values()
        if content["global_step"] < before_step and all(_is_finite(value) for value in weights):
            return path
    return None


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where the run's checkpoints are."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return Path(callback.dirpath)
    return run_dir(trainer) / "checkpoints"


def roll_back(trainer: Trainer, pl_module: StageModule, path: Path) -> int:
    """Put weights, averages and the optimizer's state of a checkpoint in place of today's.

    All else goes on: the number of the step, and with it the schedules, the data and the random
    streams. So the images that were shown since are not shown again, and nothing of Lightning's
    loops, of a loader or of its workers has to be wound back. Every process must call it.

    Returns:
        The step that the weights are of.
    """
    content = trainer.strategy.load_checkpoint(path, weights_only=True)
    trainer.strategy.load_model_state_dict(content, strict=True)
    trainer.strategy.load_optimizer_state_dict(content)
    pl_module.prefer_todays_settings()
    return int(content["global_step"])


def _is_finite(value: object) -> bool:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return not is_float or bool(torch.isfinite(value).all())  # type: ignore[arg-type]
