"""The checkpoint callback: `checkpoints/last.ckpt`, always resumable, and snapshots on request."""

import math
import warnings
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from varlit.callbacks.best import SCORES
from varlit.callbacks.record import PICTURES, run_dir
from varlit.errors import UserError
from varlit.training.checkpoint_files import SealedFiles, remove_leftovers
from varlit.training.shard_files import in_parts


class Checkpoint(ModelCheckpoint):
    """Save the whole state of the run to `runs/<name>/checkpoints`.

    A ModelCheckpoint, so that `ckpt_path: last` finds it, with two repairs: with every_n_steps
    Lightning's saves nothing at the end of training, and it expects of modules with manual
    optimization that they keep copies of their weights. Files are written by `SealedFiles`, unless
    the Trainer was given a CheckpointIO of its own.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep_every_n_steps: int = 0,
        keep_last: int = 2,
        keep_best: str = "",
        keep_best_mode: Literal["min", "max"] = "min",
        dirpath: str | None = None,
    ) -> None:
        """Plan the saves.

        Args:
            every_n_steps: Overwrite last.ckpt every this many steps; 0 = only at the end.
            keep_every_n_steps: Keep a numbered snapshot every this many steps; 0 = none.
            keep_last: Keep this many of the last; 2 = last.ckpt and last-previous.ckpt, so that a
                damaged file costs `every_n_steps` and not the run.
            keep_best: A score, such as val/loss/mean; the state after the validation with the best
                is kept as best.ckpt. Empty = none.
            keep_best_mode: Whether the least or the greatest score is the best.
            dirpath: Folder of the checkpoints; `checkpoints` in the run's folder when null.

        Raises:
            UserError: If `keep_last` is below 1, or the mode would keep the worst.
        """
        if keep_last < 1:
            raise UserError(f"got checkpoint.keep_last {keep_last}, expected 1 or more")
        _check_mode(keep_best, keep_best_mode)
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        self.every_n_steps, self.keep_every_n_steps = every_n_steps, keep_every_n_steps
        self.keep_last, self.keep_best, self.keep_best_mode = keep_last, keep_best, keep_best_mode
        self._seen_step = self._saved_step = -1
        self._best_score: float | None = None

    @property
    def state_key(self) -> str:
        """One name whatever the cadence; Lightning's forgets the state when that changes."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self._best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of a checkpoint."""
        self._best_score = state_dict["best_score"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have files written our way, and clear away what killed processes left unfinished."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) in (TorchCheckpointIO, SealedFiles):
            trainer.strategy.checkpoint_io = SealedFiles(self.keep_last)
        if stage == "fit" and trainer.is_global_zero and self.dirpath:
            # What a training alone writes; in other folders somebody may be at work right now.
            home = run_dir(trainer)
            parts = (home, *home.glob("best-*"), *home.glob(f"{PICTURES}/*"))
            for folder in (Path(self.dirpath), *parts):
                remove_leftovers(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save when a step was taken and it is time; accumulated batches share a step."""
        step = trainer.global_step
        if step == self._seen_step or _is_rehearsal(trainer):
            return
        self._seen_step = step
        if _due(step, self.every_n_steps):
            self._save_checkpoint(trainer, self._path("last"))
        if _due(step, self.keep_every_n_steps):
            self._save_checkpoint(trainer, self._path(f"{step:07d}"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the end of an epoch alone: saves go by steps."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state if its score is the best so far; other saves go by steps."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not self.keep_best or not fitting or _is_rehearsal(trainer):
            return
        if self.keep_best not in trainer.callback_metrics:
            known = ", ".join(sorted(n for n in trainer.callback_metrics if n.startswith("val/")))
            warnings.warn(
                f"checkpoint.keep_best {self.keep_best}: no such score, nothing is kept; there are "
                f"{known}",
                stacklevel=2,
            )
        elif self._is_best(float(trainer.callback_metrics[self.keep_best])):
            # Before the save: best.ckpt knows its own score.
            self._best_score = float(trainer.callback_metrics[self.keep_best])
            self._save_checkpoint(trainer, self._path("best"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, unless an interrupted run has just saved itself mid-epoch."""
        interrupted = trainer.should_stop and self._saved_step == trainer.global_step
        if not interrupted and not _is_rehearsal(trainer):
            self._save_checkpoint(trainer, self._path("last"))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take note of every save, whoever asked for it."""
        self._saved_step = trainer.global_step

    def _is_best(self, score: float) -> bool:
        """Whether a score, equal on all processes, beats the best; not a number beats nothing."""
        sign = 1.0 if self.keep_best_mode == "min" else -1.0
        before = math.inf if self._best_score is None else sign * self._best_score
        return sign * score < before

    def _path(self, stem: str) -> str:
        assert self.dirpath is not None
        return str(Path(self.dirpath) / f"{stem}{self.FILE_EXTENSION}")


def _due(step: int, every_n_steps: int) -> bool:
    return every_n_steps > 0 and step > 0 and step % every_n_steps == 0


def _check_mode(score: str, mode: str) -> None:
    """Refuse to keep the worst of a score whose direction is known."""
    name = score.split("/")[-1]
    better = "max" if SCORES.get(name) else "min"
    if name in SCORES and mode != better:
        raise UserError(
            f"{score} is better when it is {'higher' if SCORES[name] else 'lower'}; give "
            f"--checkpoint.keep_best_mode {better}"
        )


def _is_rehearsal(trainer: Trainer) -> bool:
    # An attribute that Lightning sets from outside the class.
    return bool(getattr(trainer, "fast_dev_run", False))


def check_strategy(strategy: object, content: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint in parts where weights are not sharded.

    Raises:
        UserError: With the command that makes one file of it.
    """
    if in_parts(content) and not hasattr(strategy, "save_in_parts"):
        raise UserError(
            f"{path} is in parts, which only `varlit var fit --trainer fsdp` reads; make one file "
            f"of it: varlit consolidate {path}"
        )
