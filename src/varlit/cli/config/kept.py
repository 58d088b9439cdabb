"""The config of a run as a file: `fit.yaml`, replaced only by a whole one."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from varlit.callbacks.record import run_dir
from varlit.disks import must_be_written, whole_file
from varlit.training.checkpoint_files import remove_leftovers


class KeptConfig(SaveConfigCallback):
    """Lightning's callback that saves the config, but for its way of emptying the file first.

    `test`, `predict` and `sample` go by that file: a full disk at a start must not cost it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what LightningCLI gives; the file is written here and not by its `setup`."""
        super().__init__(*args, **kwargs | {"save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, in the first process.

        Raises:
            UnwritableError: If the disk refuses; the file of the start before is as it was.
        """
        path = run_dir(trainer) / self.config_filename
        remove_leftovers(path.parent, path.name)
        remedy = "nothing was begun. Make room, or write elsewhere with --root"
        with must_be_written(path, remedy), whole_file(path) as temporary:
            options = {"skip_unset": False, "overwrite": True, "multifile": False}
            self.parser.save(self.config, str(temporary), **options)
