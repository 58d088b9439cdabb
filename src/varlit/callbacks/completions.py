"""What the transformer makes of real images whose coarse scales it is given."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from varlit.callbacks.drawing import Cadence, gathered, publish, undisturbed
from varlit.callbacks.samples import class_labels
from varlit.data.draws import PLAIN_VIEW
from varlit.data.order import BatchIndex
from varlit.ops.steps import Steps
from varlit.viz import image_grid
from varlit.viz.pyramids import plain_name

MOST_PASSES = 1024  # through the transformer for one picture


class Completions(Callback):
    """Draw held-out images anew from scale k on: a row an image, a column a number of scales given.

    The first column is drawn from the class alone, the last is the tokenizer's reconstruction.
    What changes from left to right is what each scale decides; in raster scan, rows of cells take
    the place of scales. Draws at the cadence and at the end, with the averaged weights; without
    held-out pyramids, not at all.
    """

    def __init__(self, every_n_steps: int = 2000, num_images: int = 4, seed: int = 0) -> None:
        """Plan the pictures.

        Args:
            every_n_steps: Draw every this many steps; 0 turns the pictures off.
            num_images: Held-out pyramids to complete, always the same ones.
            seed: Seed of the drawing.
        """
        self.every_n_steps, self.num_images, self.seed = every_n_steps, num_images, seed
        self._cadence = Cadence(every_n_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw when it is time."""
        self._draw_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw how it ended."""
        self._draw_if_due(trainer, pl_module, is_last=True)

    def _draw_if_due(
        self, trainer: Trainer, pl_module: LightningModule, is_last: bool = False
    ) -> None:
        if not self._cadence.is_due(trainer.global_step, is_last):
            return
        with gathered(pl_module):
            pyramids = held_out(trainer, self.num_images) if trainer.is_global_zero else None
            if pyramids is not None:
                with undisturbed(pl_module) as module:
                    self._draw(trainer, module, *pyramids)

    def _draw(self, trainer: Trainer, pl_module: Any, tokens: Tensor, labels: Tensor) -> None:
        tokens, labels = tokens.to(pl_module.device), labels.to(pl_module.device)
        given = given_steps(pl_module.network.steps)
        columns = [
            pl_module.complete(tokens, labels, num_known, seed=self.seed)
            for num_known in list(given)[:-1]
        ]
        columns.append(pl_module.tokenizer.decode(tokens))
        images = torch.stack(columns, dim=1)  # B, columns, 3, h, w
        picture = image_grid(
            images.flatten(0, 1),
            len(columns),
            row_labels=class_labels(trainer, labels.tolist()),
            column_labels=list(given.values()),
            title=f"Completions, step {trainer.global_step:,}",
            caption="Held-out images; the first steps given, the others drawn. Last: all given.",
        )
        publish(trainer, "completions", picture)


def given_steps(steps: Steps) -> dict[int, str]:
    """How many steps each column is given, with its label: none, and up to each frame.

    Fewer where an image takes many steps: the columns of a raster scan of 16 x 16 tokens are drawn
    in 1,024 passes, and not in 4,096.
    """
    last = len(steps.frame_steps) - 1
    stride = max(1, steps.num_steps * (last + 1) // MOST_PASSES)
    ends = {
        k + 1: f"to {plain_name(name)}"
        for i, (k, name) in enumerate(zip(steps.frame_steps, steps.frame_names, strict=True))
        if (last - i) % stride == 0
    }
    return {0: "class alone"} | ends


def held_out(trainer: Trainer, num_images: int) -> tuple[Tensor, Tensor] | None:
    """Read held-out pyramids (B, L) and labels (B,) from all over the set; None if it is empty."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    source = data.source("val") if hasattr(data, "source") else None
    if source is None or not len(source):
        return None
    # File order is class order: the first few would be of one class.
    rows = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(np.int64)
    batch = source[BatchIndex(rows, np.full_like(rows, PLAIN_VIEW))]
    return batch["tokens"], batch["label"]
