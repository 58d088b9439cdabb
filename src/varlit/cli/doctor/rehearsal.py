"""`fit` up to where it would build: all settings parsed, and refused where they are wrong.

The groups of settings and the callbacks are built, for they check their values; of the data only
the numbers that all have are checked, so that neither data nor weights need be there.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from varlit.cli.running.devices import check_training
from varlit.cli.stage import Stage, StageCLI
from varlit.data.module import GlobalBatchDataModule, LabelledImageDataModule
from varlit.errors import UserError


def stage_called(name: str, words: list[str]) -> Stage:
    """Put together the stage of a name, for `fit` and the words after it."""
    from varlit.cli import tokenizer, var

    return tokenizer.build_stage() if name == "tokenizer" else var.build_stage("fit", words)


class Rehearsal(StageCLI):
    """Parses and checks, and leaves out everything else."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def before_instantiate_classes(self) -> None:
        """Refuse what a fit would; devices, locks and checkpoints are not looked at."""
        check_training(self.stage.name, self.settings.trainer.as_dict())

    def instantiate_classes(self) -> None:
        """Build what is small and needs no file.

        Raises:
            UserError: If something did, or raised another error.
        """
        stand_ins = [(_data, LightningDataModule, True), (_nothing, LightningModule, True)]
        try:
            self.parser.instantiate(self.config, instantiators=stand_ins)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            reason = (str(error).splitlines() or [""])[0]
            raise cause or UserError(f"{type(error).__name__}: {reason}") from None

    def after_instantiate_classes(self) -> None:
        """There is nothing to tell."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def _data(kind: type[LightningDataModule], *_: Any, **given: Any) -> SimpleNamespace:
    """Check the numbers of a data module without opening what it reads."""
    bases = (LabelledImageDataModule, GlobalBatchDataModule)
    base = next((base for base in bases if issubclass(kind, base)), None)
    names = list(inspect.signature(base.__init__).parameters)[1:] if base else []
    if base and set(names) <= set(given):
        unopened: Any = kind.__new__(kind)
        base.__init__(unopened, **{name: given[name] for name in names})
    image_size = given.get("image_size", 1)
    return SimpleNamespace(image_size=image_size, num_classes=1, tokenizer_folder="")


def _nothing(kind: type[LightningModule], *_: Any, **__: Any) -> None:
    """Stand in for a network."""
