"""The trained network as plain files beside every checkpoint."""

from contextlib import nullcontext
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.drawing import gathered
from varlit.callbacks.record import run_dir
from varlit.disks import may_be_lost
from varlit.models.files import WEIGHTS_FILE


class ExportWeights(Callback):
    """Write config.json and model.safetensors to the run's folder whenever a checkpoint is saved.

    Calls `pl_module.export(run_dir)` in the first process; modules without it are left alone. If
    the disk refuses, training goes on: the checkpoint holds the same weights, and the next save
    exports again. After the last step there is no next save, so there it is an error, before the
    checkpoint is written: the same command then takes the steps since the one before once more.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Plan the export.

        Args:
            enabled: Whether to export.
        """
        self.enabled = enabled

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Export the weights that the checkpoint holds.

        Raises:
            UnwritableError: If the disk refuses the last export.
        """
        export = getattr(pl_module, "export", None)
        if not self.enabled or export is None:
            return
        is_last = trainer.global_step >= trainer.estimated_stepping_batches
        with gathered(pl_module):
            if trainer.is_global_zero:
                path = run_dir(trainer) / WEIGHTS_FILE
                lost = may_be_lost("exports of the weights", path)
                with nullcontext() if is_last else lost:
                    export(run_dir(trainer))
