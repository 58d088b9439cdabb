"""What the drawing callbacks share: when to draw, how not to disturb, where pictures go."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from varlit.callbacks.record import PICTURES, run_dir
from varlit.disks import may_be_lost
from varlit.viz import save_png

Network = TypeVar("Network", bound=nn.Module)


class Cadence:
    """When to draw: at steps 0, 1, 2, 4, 8, ... below `every_n_steps`, then every, and the last.

    The early pictures are the habit of taming-transformers: a mistake shows within a minute.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._drawn_step = -1

    def is_due(self, step: int, is_last: bool = False) -> bool:
        """Whether to draw now; says yes once a step, however many batches share it."""
        early = step < self.every_n_steps and step & (step - 1) == 0
        due = self.every_n_steps > 0 and (is_last or early or step % self.every_n_steps == 0)
        if not due or step == self._drawn_step:
            return False
        self._drawn_step = step
        return True


@contextmanager
def undisturbed(network: Network) -> Iterator[Network]:
    """Lend a network for drawing: eval mode, no gradients, and a random stream of its own.

    Afterwards the training flag of every part and all global random states are as before, so
    that a run with pictures equals a run without them to the bit.
    """
    flags = [(part, part.training) for part in network.modules()]
    with isolate_rng(include_cuda=torch.cuda.is_available()), torch.no_grad():
        network.eval()
        try:
            yield network
        finally:
            for part, training in flags:
                part.training = training


@contextmanager
def may_lack_memory(name: str, fewer: str) -> Iterator[None]:
    """Draw what a training can do without; if the GPU has no room for it, warn once and go on.

    Args:
        name: The group of settings, such as `samples`.
        fewer: The setting of it that makes pictures smaller, such as `columns 1`.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError:
        pass  # its traceback holds the tensors of the picture until here
    torch.cuda.empty_cache()
    warnings.warn(
        f"the GPU has no memory left for the pictures of {name}; training goes on without them "
        f"(--{name}.{fewer}, or --{name}.every_n_steps 0)",
        stacklevel=3,
    )


def gathered(pl_module: nn.Module) -> AbstractContextManager[None]:
    """Let the first process see whole weights, however they are spread; all must enter."""
    gather = getattr(pl_module, "gathered", None)
    return nullcontext() if gather is None else gather()


def publish(trainer: Trainer, tag: str, picture: np.ndarray) -> None:
    """Write a picture to pictures/<tag>/step-0000500.png and to TensorBoard."""
    step = trainer.global_step
    path = run_dir(trainer) / PICTURES / tag / f"step-{step:07d}.png"
    with may_be_lost("pictures", path):
        save_png(picture, path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment
            writer.add_image(f"pictures/{tag}", picture, step, dataformats="HWC")
