"""The best weights of a run by each score, as model folders beside the last ones."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from varlit.callbacks.record import run_dir
from varlit.disks import may_be_lost, whole_file

SCORE_FILE = "score.json"
# Whether more is better. Better rFID need not mean better samples, nor a better PSNR (XQ-GAN's
# README, GigaTok's table), so each score keeps its own weights.
SCORES = {"psnr": True, "lpips": False, "rfid": False}


class KeepBest(Callback):
    """Export the tokenizer to runs/<name>/best-psnr (-lpips, -rfid) when a validation is the best.

    The folders are models like the run's own, with the weights that were validated:
    `varlit reconstruct runs/<name>/best-psnr`. The run itself stays the last state.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Plan the exports.

        Args:
            enabled: Whether to keep the best.
        """
        self.enabled = enabled
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best scores so far; a resumed run goes by those of its checkpoint."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the scores of a checkpoint."""
        self.best = dict(state_dict["best"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export where a score is the best; scores are equal on all processes, files are one's."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        if not self.enabled or not fitting or trainer.sanity_checking:
            return
        for name, value in self._improved(trainer.callback_metrics).items():
            folder = run_dir(trainer) / f"best-{name}"
            with may_be_lost("exports of the best weights", folder / SCORE_FILE):
                if trainer.is_global_zero:
                    pl_module.export(folder)  # type: ignore[operator]
                    score = {"score": f"val/{name}", "value": value, "step": trainer.global_step}
                    write_score(folder / SCORE_FILE, score)
                # Only now: what could not be written is no best that others have to beat.
                self.best[name] = value

    def _improved(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Scores of this validation that beat the best so far; not a number beats nothing."""
        found = {n: float(metrics[f"val/{n}"]) for n in SCORES if f"val/{n}" in metrics}
        worst = {
            n: -math.inf if more_is_better else math.inf for n, more_is_better in SCORES.items()
        }
        before = worst | self.best
        return {
            name: value
            for name, value in found.items()
            if (value > before[name] if SCORES[name] else value < before[name])
        }


def write_score(path: Path, score: Mapping[str, Any]) -> None:
    """Write a score, atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(score) + "\n")
