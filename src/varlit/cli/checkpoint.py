"""The checkpoint callback: `checkpoints/last.ckpt`, always resumable, and snapshots on request."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


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
