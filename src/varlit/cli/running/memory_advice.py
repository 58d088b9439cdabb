"""What to say when memory runs out: a flag that keeps the global batch, where there is one."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.token_writer import DEFAULT_BATCH_SIZE, TokenWriter

# How torch says it where it has no type of its own for it.
CPU_SIGNS = ("can't allocate memory", "not enough memory: you tried to allocate")
GPU_SIGNS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
TOLD_LETTERS = 160


def exhausted(error: BaseException) -> str:
    """Which memory an error says to be used up; "" for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU memory"
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError):
        if any(sign in str(error) for sign in CPU_SIGNS):
            return "memory"
        if any(sign in str(error) for sign in GPU_SIGNS):
            return "GPU memory"
    return ""


def advice(
    verb: str, error: BaseException, trainer: Trainer, data: LightningDataModule | None
) -> str:
    """Say in a line what ran out and what helps.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        error: For which `exhausted` is not empty.
        trainer: Of the run.
        data: Its data; `batch_size` is that of all devices.
    """
    wanted = " ".join(". ".join(str(error).split(". ")[:2]).split())[:TOLD_LETTERS]
    told = f"out of {exhausted(error)}{f' ({wanted})' if wanted else ''}"
    batch_size = int(getattr(data, "batch_size", 1))
    if verb == "predict":
        half = max(1, _encoded_at_once(trainer) // 2)
        return f"{told}; remove the cache that was begun, and give --cache.batch_size {half}"
    if verb != "fit":
        return f"{told}; take fewer images at a time: --data.batch_size {max(1, batch_size // 2)}"
    parts = more_parts(batch_size, trainer.world_size, int(trainer.accumulate_grad_batches))
    if parts:
        return (
            f"{told}; keep the global batch of {batch_size} and give a device less of it at once: "
            f"--trainer.accumulate_grad_batches {parts}"
        )
    return (
        f"{told}, and a device holds one image at a time already; take a smaller model or a larger "
        "device, or in stage 2 several with --trainer fsdp"
    )


def more_parts(batch_size: int, num_devices: int, num_parts: int) -> int:
    """The least number of equal parts of a batch in which a device holds half or less of today.

    Args:
        batch_size: Images of a step, on all devices.
        num_devices: Processes that share it.
        num_parts: Parts of today.

    Returns:
        A divisor of each device's share; 0 if it holds one image at a time already.
    """
    share = batch_size // num_devices
    return next((n for n in range(2 * num_parts, share + 1) if share % n == 0), 0)


def _encoded_at_once(trainer: Trainer) -> int:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    sizes = [each.batch_size for each in callbacks if isinstance(each, TokenWriter)]
    return sizes[0] if sizes else DEFAULT_BATCH_SIZE
