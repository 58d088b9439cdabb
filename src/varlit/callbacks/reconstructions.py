"""What the tokenizer makes of a few fixed images, as it learns."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from varlit.callbacks.drawing import Cadence, may_lack_memory, publish, undisturbed
from varlit.data.draws import PLAIN_VIEW
from varlit.data.loader import ResumableLoader
from varlit.data.order import BatchIndex
from varlit.metrics.reconstruction import psnr
from varlit.viz import growing_strip, side_by_side, token_map_heat
from varlit.viz.pyramids import plain_name

NUM_GROWING = 4


class Reconstructions(Callback):
    """Draw originals, reconstructions and differences, growing pyramids, and token maps.

    The images are evenly spaced over the validation set (where there is none, over the training
    set without augmentation), the same in every picture. Draws at steps 0, 1, 2, 4, 8, ... up to
    the cadence, then at the cadence, with `pl_module.averaged`. After a validation it draws the
    images that came out worst (`pl_module.measures.worst`, of the first process's share).
    """

    def __init__(self, every_n_steps: int = 1000, num_images: int = 8) -> None:
        """Plan the pictures.

        Args:
            every_n_steps: Draw every this many steps; 0 turns the pictures off.
            num_images: Number of images.
        """
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self._cadence = Cadence(every_n_steps)
        self._images: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the untrained tokenizer."""
        self._draw_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw when it is time."""
        self._draw_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw how it ended."""
        self._draw_if_due(trainer, pl_module, is_last=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the worst of a validation while training."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not trainer.is_global_zero or not fitting or not self.every_n_steps:
            return
        measures: Any = pl_module.measures
        worst = measures.worst
        if worst is None:
            return
        by = "PSNR" if measures.perceptual is None else "LPIPS"
        picture = side_by_side(
            worst.images,
            worst.reconstructions,
            labels=[f"{by} {abs(value):.3g}" for value in worst.badness.tolist()],
            title=f"The worst by {by}, step {trainer.global_step:,}",
            caption="Held-out images whose reconstruction is furthest off.",
        )
        publish(trainer, "worst", picture)

    def _draw_if_due(
        self, trainer: Trainer, pl_module: LightningModule, is_last: bool = False
    ) -> None:
        if not trainer.is_global_zero or not self._cadence.is_due(trainer.global_step, is_last):
            return
        averaged = pl_module.averaged
        assert isinstance(averaged, torch.nn.Module)
        lacking = may_lack_memory("reconstructions", "num_images 2")
        with lacking, undisturbed(averaged) as network:
            if self._images is None:
                self._images = fixed_images(trainer, self.num_images)
            self._draw(trainer, network, self._images.to(pl_module.device))

    def _draw(self, trainer: Trainer, network: Any, images: Tensor) -> None:
        tokens = network.encode(images)  # (B, L)
        reconstructions = network.decode(tokens)
        few = tokens[:NUM_GROWING]
        scales = network.scales
        frames = [network.decode_prefix(few, k + 1) for k in range(scales.num_scales)]
        at = f"step {trainer.global_step:,}"
        decibels = [f"{value:.1f} dB" for value in psnr(images, reconstructions).tolist()]
        picture = side_by_side(
            images,
            reconstructions,
            labels=decibels,
            title=f"Reconstructions, {at}",
            caption="Images, and the same after a trip through their tokens.",
        )
        publish(trainer, "reconstructions", picture)
        means = [psnr(images[: len(few)], frame).mean().item() for frame in frames]
        picture = growing_strip(
            frames,
            [f"{plain_name(n)}, {db:.1f} dB" for n, db in zip(scales.names, means, strict=True)],
            originals=images[: len(few)],
            title=f"The picture grows, {at}",
            caption="Decoded from the token maps up to each scale.",
        )
        publish(trainer, "pyramid", picture)
        picture = token_map_heat(
            few, scales, images=frames[-1], title=f"Token maps, {at}", caption="A colour a code."
        )
        publish(trainer, "token_maps", picture)


def fixed_images(trainer: Trainer, num_images: int) -> Tensor:
    """Images (B, 3, H, W), evenly spaced over the validation set, or the training set without one.

    They are read past the loader, which keeps its place.
    """
    loaders = trainer.val_dataloaders
    if loaders is None:
        loaders = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
    if not loaders:
        loaders = trainer.train_dataloader
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    assert loader is not None, "pictures are drawn while training"
    if isinstance(loader, ResumableLoader):
        ids = spread_ids(len(loader.source), num_images)
        return loader.source[BatchIndex(ids, np.full_like(ids, PLAIN_VIEW))]["image"]
    ids = spread_ids(len(loader.dataset), num_images)
    return loader.collate_fn([loader.dataset[i] for i in ids.tolist()])["image"]


def spread_ids(num_samples: int, wanted: int) -> np.ndarray:
    """Rows of a set, evenly spaced: in class folders the first ones would be of one class."""
    num_ids = min(wanted, num_samples)
    return np.arange(num_ids, dtype=np.int64) * num_samples // num_ids
