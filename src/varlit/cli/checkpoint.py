"""The checkpoint callback: `checkpoints/last.ckpt`, always resumable, and snapshots on request."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from varlit.errors import UserError
from varlit.training.shard_files import in_parts


class Checkpoint(ModelCheckpoint):
    """Save the whole state of the run to `runs/<name>/checkpoints`.

    A ModelCheckpoint, so that `ckpt_path: last` finds it, with two repairs: with every_n_steps
    Lightning's saves nothing at the end of training, and it expects of modules with manual
    optimization that they keep copies of their weights.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep_every_n_steps: int = 0,
        dirpath: str | None = None,
    ) -> None:
        """Plan the saves.

        Args:
            every_n_steps: Overwrite last.ckpt every this many steps; 0 = only at the end.
            keep_every_n_steps: Keep a numbered snapshot every this many steps; 0 = none.
            dirpath: Folder of the checkpoints; `checkpoints` in the run's folder when null.
        """
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        self.every_n_steps, self.keep_every_n_steps = every_n_steps, keep_every_n_steps
        self._seen_step = self._saved_step = -1

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
        """Leave validation alone: saves go by steps."""

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

    def _path(self, stem: str) -> str:
        assert self.dirpath is not None
        return str(Path(self.dirpath) / f"{stem}{self.FILE_EXTENSION}")


def _due(step: int, every_n_steps: int) -> bool:
    return every_n_steps > 0 and step > 0 and step % every_n_steps == 0


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; its tensors stay on disk until they are used.

    Raises:
        UserError: If the file is damaged or is no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise UserError(
            f"{path} is damaged or no checkpoint of varlit ({type(error).__name__}); delete it to "
            "start afresh, or give another --name"
        ) from error
    if not isinstance(content, dict) or "hyper_parameters" not in content:
        raise UserError(f"{path} is no checkpoint of varlit; give another file")
    return content
