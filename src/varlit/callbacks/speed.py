"""How fast training runs, as curves: images, tokens, waiting, memory, share of the card."""

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.readings import count_images
from varlit.ops.costs import card_peak_tflops


class SpeedWatch(Callback):
    """Logs `speed/...` on log steps, over the steps since the last one; asks nothing of the device.

    `speed/data_wait` is the share of time in which training waited for its next batch;
    `speed/mfu` the operations of forward and backward (by formula, no recomputation) over the
    card's data sheet (Chowdhery et al. 2022, PaLM, appendix B). What comes between two batches
    beside waiting (validation, pictures, saves) does not count.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Plan the curves.

        Args:
            enabled: Whether to log them.
        """
        self.enabled = enabled
        self._began_s = self._busy_s = self._waited_before_s = 0.0
        self._num_images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        self._restart(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the begin of a step."""
        self._began_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step; on a log step, log since the last one."""
        self._busy_s += time.perf_counter() - self._began_s
        self._num_images += count_images(batch)
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_log_step = trainer.global_step % getattr(trainer, "log_every_n_steps", 1) == 0
        if not (self.enabled and ends_step and is_log_step and trainer.global_step):
            return
        scalars = self._scalars(trainer, pl_module)
        # The step is that of the curves of both stages: optimizer steps done.
        pl_module.log_dict({**scalars, "step": float(trainer.global_step)})
        self._restart(trainer)

    def _scalars(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        waited_s = _waited_s(trainer) - self._waited_before_s
        total_s = max(self._busy_s + waited_s, 1e-9)
        images_per_s = self._num_images / total_s  # of one device: all take the same time
        scalars = {
            "speed/images_per_s": images_per_s * trainer.world_size,
            "speed/data_wait": waited_s / total_s,
        }
        num_tokens = getattr(pl_module, "tokens_per_image", 0)
        if num_tokens:
            scalars["speed/tokens_per_s"] = scalars["speed/images_per_s"] * num_tokens
        device = pl_module.device
        if device.type != "cuda":
            return scalars
        scalars["speed/peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        peak_flops = 1e12 * card_peak_tflops(torch.cuda.get_device_name(device))
        if peak_flops:
            flops = getattr(pl_module, "training_flops_per_image", 0.0)
            scalars["speed/mfu"] = flops * images_per_s / peak_flops
        return scalars

    def _restart(self, trainer: Trainer) -> None:
        self._busy_s, self._num_images = 0.0, 0
        self._waited_before_s = _waited_s(trainer)


def _waited_s(trainer: Trainer) -> float:
    return float(getattr(trainer.train_dataloader, "waited_s", 0.0))
