"""One step of a run once more, watched: which part of the network makes the first NaN or Inf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from varlit.training.guard import Reading
from varlit.training.stage import StageModule


class Replay(Callback):
    """Watch the one step that is trained, then stop; nothing is written.

    Attributes:
        broken_module: The first part of the network with a broken output, "" if none had one.
        has_broken_weights: Whether weights of that part are broken themselves.
        terms: Names of all losses.
        broken_terms: Losses that are not finite.
        broken_gradients: Weights whose gradient is not finite.
        reading: The rest of what the device told.
    """

    def __init__(self, step: int, seeds: list[int]) -> None:
        """Plan the step.

        Args:
            step: Number of the step, the first being 1.
            seeds: Of the draws in each part of it.
        """
        self.step, self.seeds = step, seeds
        self.broken_module, self.has_broken_weights = "", False
        self.terms: list[str] = []
        self.broken_terms: list[str] = []
        self.broken_gradients: list[str] = []
        self.reading: Reading | None = None
        self._handles: list[Any] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the run at its step, and look at what every part of the network gives."""
        assert isinstance(pl_module, StageModule)
        # Schedules and the start of the discriminator are functions of this number.
        progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        progress.optimizer.step.total.completed = self.step - 1
        pl_module.replayed_seeds = self.seeds
        for name, module in pl_module.named_modules():
            if name:
                self._handles.append(module.register_forward_hook(self._hook(name)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Read what was found, after the last part."""
        assert isinstance(pl_module, StageModule)
        if not pl_module.guard.records:
            return
        record = pl_module.guard.records.pop()
        self.reading, self.terms = record.read(), list(record.terms[0])
        self.broken_terms = record.broken_terms()
        self.broken_gradients = [name for found in record.gradients for name in found.broken()]
        for handle in self._handles:
            handle.remove()
        trainer.should_stop = True

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.broken_module and any(_is_broken(value) for value in tensors_of(output)):
                self.broken_module = name
                self.has_broken_weights = any(_is_broken(weight) for weight in module.parameters())

        return look


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest of sequences, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif is_dataclass(value):
        yield from tensors_of([getattr(value, field.name) for field in fields(value)])


def _is_broken(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())
