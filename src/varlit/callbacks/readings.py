"""What the progress lines read off batches, logged figures and the trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

LOSS_TAGS = ("loss/total", "loss/mean")
NUM_VALIDATION_FIGURES = 5


def count_images(batch: Any) -> int:
    """Number of samples of a batch: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next((len(value) for value in values if isinstance(value, Tensor)), 0)


def read_loss(metrics: Mapping[str, Tensor], outputs: Any) -> float | None:
    """The training loss: the logged one, else what the training step returned.

    Waits for the device.
    """
    for tag in LOSS_TAGS:
        for logged in (tag, f"{tag}_step"):
            if logged in metrics:
                return float(metrics[logged])
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def describe_figures(metrics: Mapping[str, Tensor]) -> str:
    """The first few validation figures, without their common prefix."""
    figures = [(tag, value) for tag, value in metrics.items() if tag.startswith("val/")]
    summary = [pair for pair in figures if "by_scale" not in pair[0] and "scale_" not in pair[0]]
    told = [
        f"{tag.removeprefix('val/')} {float(value):.4g}"
        for tag, value in summary[:NUM_VALIDATION_FIGURES]
    ]
    return "  ".join(told)


def validations_per_step(trainer: Trainer) -> float:
    """How many validations a step brings on average."""
    batches = trainer.val_check_batch
    if not trainer.enable_validation or not batches or not math.isfinite(batches):
        return 0.0
    epochs = trainer.check_val_every_n_epoch or 1
    if batches < trainer.num_training_batches and epochs > 1:
        batches = trainer.num_training_batches * epochs / (trainer.num_training_batches // batches)
    elif epochs > 1:
        batches *= epochs
    return trainer.accumulate_grad_batches / batches
