"""The card at the start of a training and the card at its end, as plain text."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sized
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from varlit.callbacks.clock import duration
from varlit.callbacks.record import PICTURES, run_dir


def start_card(trainer: Trainer, pl_module: LightningModule) -> str:
    """What is trained, on what, for how long, and where to look.

    A module may add lines of its own by an attribute `card_lines`, a mapping of label to text.
    """
    folder = run_dir(trainer)
    lines = {
        "model": describe_parameters(pl_module),
        **dict(getattr(pl_module, "card_lines", {})),
        "data": describe_data(trainer),
        "machine": describe_machine(trainer, pl_module),
        "batch": describe_batch(trainer),
        "length": describe_length(trainer),
        "resumed": f"at step {trainer.global_step:,}" if trainer.global_step else "",
        "run": str(folder),
        "watch": f"tensorboard --logdir {folder.parent} --samples_per_plugin images=200",
    }
    return card(f"training {type(pl_module).__name__}", lines)


def end_card(
    trainer: Trainer, pl_module: LightningModule, elapsed_s: float, images_per_s: float | None
) -> str:
    """What was done, what it took, where the pictures are, and what to type next."""
    speed = f", {images_per_s:,.0f} img/s" if images_per_s else ""
    pictures = run_dir(trainer) / PICTURES
    lines = {
        "memory": describe_peak(pl_module.device),
        "pictures": str(pictures) if pictures.is_dir() else "",
        "next": str(getattr(pl_module, "next_command", "") or ""),
    }
    title = f"finished at step {trainer.global_step:,} after {duration(elapsed_s)}{speed}"
    return card(title, lines)


def card(title: str, lines: Mapping[str, str]) -> str:
    """A title and aligned lines; lines without text are left out."""
    told = {label: text for label, text in lines.items() if text}
    width = max((len(label) for label in told), default=0)
    return "\n".join([title, *(f"  {label:<{width}}  {text}" for label, text in told.items())])


def describe_parameters(pl_module: LightningModule) -> str:
    """Number of trained parameters, by part where there are several."""
    parts = {name: count_trained(part) for name, part in pl_module.named_children()}
    told = [f"{name} {short(count)}" for name, count in parts.items() if count]
    detail = f" ({', '.join(told)})" if len(told) > 1 else ""
    return f"{short(count_trained(pl_module))} parameters{detail}"


def count_trained(module: torch.nn.Module) -> int:
    """Number of parameters that receive gradients."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def describe_data(trainer: Trainer) -> str:
    """Numbers of images and classes, as far as the loaders and the data module know them."""
    told = []
    sets = (("training", trainer.train_dataloader), ("validation", trainer.val_dataloaders))
    for name, loaders in sets:
        size = dataset_size(loaders)
        if size:
            told.append(f"{size:,} {name} images")
    num_classes = getattr(trainer.datamodule, "num_classes", None)  # type: ignore[attr-defined]
    if num_classes:
        told.append(f"{num_classes:,} classes")
    return ", ".join(told)


def dataset_size(loaders: Any) -> int:
    """Number of samples behind a loader or a list of loaders; 0 where it is not known."""
    if isinstance(loaders, list | tuple):
        return sum(dataset_size(loader) for loader in loaders)
    samples = getattr(loaders, "source", getattr(loaders, "dataset", None))
    return len(samples) if isinstance(samples, Sized) else 0


def describe_machine(trainer: Trainer, pl_module: LightningModule) -> str:
    """Devices and precision."""
    if pl_module.device.type == "cuda":
        name = torch.cuda.get_device_name(pl_module.device)
    else:
        name = f"{pl_module.device.type.upper()} ({os.cpu_count()} cores)"
    return f"{trainer.world_size} x {name}, precision {trainer.precision}"


def describe_batch(trainer: Trainer) -> str:
    """The global batch and how it is cut, where the data module knows it."""
    size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    if not isinstance(size, int):
        return ""
    micro = size // (trainer.world_size * trainer.accumulate_grad_batches)
    told = f"{size:,} images"
    if micro != size:
        told += f" = {trainer.world_size} devices x {micro}"
        if trainer.accumulate_grad_batches > 1:
            told += f" x {trainer.accumulate_grad_batches} accumulated"
    return told


def describe_length(trainer: Trainer) -> str:
    """Steps and epochs, or the time limit."""
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    total = trainer.estimated_stepping_batches
    told = []
    if math.isfinite(total):
        told.append(f"{int(total):,} steps")
    if math.isfinite(per_epoch):
        told.append(f"{math.ceil(per_epoch):,} steps an epoch")
    return ", ".join(told)


def describe_peak(device: torch.device) -> str:
    """Largest memory that torch held on a GPU."""
    if device.type != "cuda":
        return ""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB peak on the GPU"


def short(count: int) -> str:
    """A count in three digits: 912, 1.23 k, 45.6 M, 2.01 B."""
    value = float(count)
    for unit in ("", " k", " M", " B"):
        if value < 999.5 or unit == " B":
            digits = 0 if unit == "" else max(0, 2 - int(math.log10(max(value, 1))))
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")
