"""The trained network as plain files beside every checkpoint."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.drawing import gathered
from varlit.callbacks.record import run_dir


class ExportWeights(Callback):
    """Write config.json and model.safetensors to the run's folder whenever a checkpoint is saved.

    Calls `pl_module.export(run_dir)` in the first process; modules without it are left alone.
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
        """Export the weights that the checkpoint holds."""
        export = getattr(pl_module, "export", None)
        if self.enabled and export is not None:
            with gathered(pl_module):
                if trainer.is_global_zero:
                    export(run_dir(trainer))
