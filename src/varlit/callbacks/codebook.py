"""Watches how much of the codebook each scale uses, and warns of collapse with its cure."""

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.drawing import publish
from varlit.callbacks.terminal import say
from varlit.metrics.codebook import CodebookReport, CodebookUsage
from varlit.viz import usage_bars
from varlit.viz.plots import COLLAPSED_SHARE, percent

YOUNG_SHARE = 0.1  # of the training: before that a small usage is normal
LOOKS_TO_WARN = 3
CURE = (
    "Cure: go on with --model.codebook.restart_below 1.0, which replaces dead codes, or begin anew "
    "with --model.codebook.init kmeans; see docs/reading-the-curves.md#collapse"
)


class CodebookWatch(Callback):
    """After a validation: usage and perplexity by scale as scalars, bars as a picture.

    A scale is called collapsed when, after the first tenth of the training, it hit in three looks
    running less than a twentieth of the codes that so many tokens could have hit at all: the 1x1
    map of few images is not blamed for being small. Reads `pl_module.validation_usage`.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        """Plan the looks.

        Args:
            every_n_steps: Look at the first validation after this many further steps, so 1 is
                every validation; 0 turns the watch off.
        """
        self.every_n_steps = every_n_steps
        self._looked_step: int | None = None
        self._low_at: dict[str, list[int]] = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look if it is time; every process comes here, because usage is summed over them."""
        step = trainer.global_step
        too_soon = self._looked_step is not None and step - self._looked_step < self.every_n_steps
        if self.every_n_steps == 0 or too_soon or trainer.sanity_checking:
            return
        self._looked_step = step
        usage = pl_module.validation_usage
        assert isinstance(usage, CodebookUsage)
        report, names = usage.compute(), usage.scales.names
        pl_module.log_dict(scalars(report, names), on_step=False, on_epoch=True)
        if trainer.is_global_zero:
            picture = draw_usage(report, names, usage.codebook_size, step)
            publish(trainer, "codebook", picture)
            if step >= YOUNG_SHARE * trainer.estimated_stepping_batches:
                for warning in self._collapsed(report, names, step):
                    say(warning)

    def _collapsed(self, report: CodebookReport, names: tuple[str, ...], step: int) -> list[str]:
        warnings = []
        pairs = zip(report.usage_by_scale, report.attainable_by_scale, strict=True)
        for name, (used, reach) in zip(names, pairs, strict=True):
            if used >= COLLAPSED_SHARE * reach:
                self._low_at.pop(name, None)
                continue
            low_at = self._low_at.setdefault(name, [])
            low_at.append(step)
            if len(low_at) == LOOKS_TO_WARN:
                warnings.append(
                    f"codebook collapse: scale {name} uses {percent(float(used))} of the codes "
                    f"({percent(float(reach))} in reach) since step {low_at[0]:,}. {CURE}"
                )
        return warnings


def scalars(report: CodebookReport, names: tuple[str, ...]) -> dict[str, float]:
    """The report as tags and values for the loggers."""
    told = {"codebook/usage": report.usage, "codebook/perplexity": report.perplexity}
    for kind in ("usage", "perplexity", "attainable"):
        values = getattr(report, f"{kind}_by_scale").tolist()
        told.update(
            {f"codebook/{kind}_by_scale/{n}": v for n, v in zip(names, values, strict=True)}
        )
    return told


def draw_usage(
    report: CodebookReport, names: tuple[str, ...], codebook_size: int, step: int
) -> np.ndarray:
    """Bars of usage by scale."""
    return usage_bars(
        report.usage_by_scale.tolist(),
        report.attainable_by_scale.tolist(),
        names,
        title=f"Code usage by scale, step {step:,}",
        caption=f"Of {codebook_size:,} codes, hit by {report.num_images:,} validation images; "
        "pale: what they could hit.",
    )
