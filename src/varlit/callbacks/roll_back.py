"""Back to the weights of an earlier checkpoint, within a running training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from varlit.callbacks.record import run_dir
from varlit.errors import UserError
from varlit.training.checkpoint_files import candidates, damage, read_checkpoint
from varlit.training.shard_files import in_parts, open_parts
from varlit.training.stage import StageModule


def last_good(folder: Path, before_step: int) -> Path | None:
    """The newest whole checkpoint of an earlier step in which all is finite; None without one.

    All is what `roll_back` puts in place: weights, averages and the optimizer's state, also where
    they lie in parts. An infinite moment would stop a weight for good, a NaN would come back.
    """
    for path in candidates(folder):
        if not damage(path) and _is_good(path, before_step):
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


def _is_good(path: Path, before_step: int) -> bool:
    content = read_checkpoint(path)
    if content["global_step"] >= before_step:
        return False
    try:
        content = open_parts(content, path) if in_parts(content) else content
    except UserError:  # parts that are whole and do not fit
        return False
    return _is_finite(content["state_dict"]) and _is_finite(content["optimizer_states"])


def _is_finite(tree: Any) -> bool:
    """Whether all tensors in nested dicts and lists are; they are read one after the other."""
    if isinstance(tree, Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(map(_is_finite, tree.values()))
    return not isinstance(tree, list | tuple) or all(map(_is_finite, tree))
