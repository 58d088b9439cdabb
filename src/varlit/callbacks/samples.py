"""What the transformer draws for a few fixed classes and seeds, as it learns."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.drawing import (
    Cadence,
    gathered,
    may_lack_memory,
    publish,
    undisturbed,
)
from varlit.errors import UserError
from varlit.viz import growing_strip, image_grid

DEFAULT_NUM_CLASSES = 8
NUM_GROWING = 4
LABEL_LETTERS = 18


class Samples(Callback):
    """Draw a grid of samples, a class a row, and a few of them growing over the scales.

    Classes and seeds stay the same, so that pictures compare over time and between runs. Draws
    at steps 0, 1, 2, 4, 8, ... up to the cadence, then at the cadence, with the averaged weights.
    """

    def __init__(
        self,
        every_n_steps: int = 2000,
        classes: list[int] | None = None,
        columns: int = 4,
        cfg_scale: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        seed: int = 0,
        sweep: tuple[float, ...] = (0.0, 1.5, 3.0, 5.0),
    ) -> None:
        """Plan the pictures.

        Args:
            every_n_steps: Draw every this many steps; 0 turns the pictures off.
            classes: Classes to draw, a row each; null for up to eight spread over all.
            columns: Number of samples of each class.
            cfg_scale: Strength of guidance; 0 is none.
            top_k: Draw among the k likeliest codes; 0 is all.
            top_p: Draw among the likeliest codes that hold this probability; 0 is all.
            seed: Seed of the drawing.
            sweep: Guidances to compare in a picture of their own, one image a class; [] for none.
        """
        self.every_n_steps = every_n_steps
        self.classes, self.columns = classes, columns
        self.cfg_scale, self.top_k, self.top_p, self.seed = cfg_scale, top_k, top_p, seed
        self.sweep = tuple(sweep)
        self._cadence = Cadence(every_n_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse classes that the model does not know, before anything is trained."""
        unknown = [c for c in self.classes or [] if not 0 <= c < _num_classes(pl_module)]
        if unknown:
            raise UserError(
                f"samples.classes names {unknown}, but the model has classes 0 to "
                f"{_num_classes(pl_module) - 1}; give --samples.classes among those."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw with the untrained transformer."""
        self._draw_if_due(trainer, pl_module)

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
            if trainer.is_global_zero:
                # The module, not the averaged network alone: `draw` may use any part of it.
                lacking = may_lack_memory("samples", "columns 1")
                with lacking, undisturbed(pl_module) as module:
                    self._draw(trainer, module)

    def _draw(self, trainer: Trainer, pl_module: Any) -> None:
        classes = self.classes or spread_classes(_num_classes(pl_module))
        labels = torch.tensor(classes, device=pl_module.device).repeat_interleave(self.columns)
        drawn = pl_module.draw(
            labels, seed=self.seed, cfg_scale=self.cfg_scale, top_k=self.top_k, top_p=self.top_p
        )
        names = class_labels(trainer, classes)
        at = f"step {trainer.global_step:,}"
        picture = image_grid(
            drawn.images,
            self.columns,
            row_labels=names,
            title=f"Samples, {at}",
            caption=f"One row a class; guidance {self.cfg_scale:g}, seed {self.seed}.",
        )
        publish(trainer, "samples", picture)
        if drawn.frames:
            firsts = slice(0, NUM_GROWING * self.columns, self.columns)
            picture = growing_strip(
                [frame[firsts] for frame in drawn.frames],
                pl_module.network.steps.frame_names,
                row_labels=names[:NUM_GROWING],
                title=f"Samples grow, {at}",
                caption="Decoded after each scale that was drawn; in raster scan, after each row.",
            )
            publish(trainer, "growing", picture)
        if self.sweep:
            self._draw_sweep(trainer, pl_module, classes, names)

    def _draw_sweep(
        self, trainer: Trainer, pl_module: Any, classes: list[int], names: list[str]
    ) -> None:
        """The same seeds at several strengths of guidance: a row a strength, a column a class."""
        labels = torch.tensor(classes, device=pl_module.device)
        rows = [
            pl_module.draw(
                labels, seed=self.seed, cfg_scale=scale, top_k=self.top_k, top_p=self.top_p
            ).images
            for scale in self.sweep
        ]
        picture = image_grid(
            torch.cat(rows),
            len(classes),
            row_labels=[f"{scale:g}" for scale in self.sweep],
            column_labels=names,
            title=f"Guidance, step {trainer.global_step:,}",
            caption=f"One row a strength, seed {self.seed}.",
        )
        publish(trainer, "guidance", picture)


def spread_classes(num_classes: int) -> list[int]:
    """Up to eight classes, evenly spaced over all; ten or fewer are all shown."""
    shown = num_classes if num_classes <= 10 else DEFAULT_NUM_CLASSES
    return [i * num_classes // shown for i in range(shown)]


def class_labels(trainer: Trainer, classes: list[int]) -> list[str]:
    """Names of classes if the data module knows them, their numbers otherwise."""
    names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
    return [clip(str(names[c])) if names else str(c) for c in classes]


def clip(name: str) -> str:
    """A name of bounded length, such as `African elephan..`."""
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 2] + ".."


def _num_classes(pl_module: Any) -> int:
    return int(pl_module.num_classes)
