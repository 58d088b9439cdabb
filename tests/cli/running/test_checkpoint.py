"""The checkpoint callback: at its cadence, at the end, and not over an interrupted state."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel

from varlit.cli.running.checkpoint import Checkpoint


def fit(
    folder: Path, max_steps: int, checkpoint: Checkpoint, *others: Callback, resume: bool = False
) -> Trainer:
    trainer = Trainer(
        max_steps=max_steps,
        callbacks=[*others, checkpoint],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(BoringModel(), ckpt_path="last" if resume else None, weights_only=True)
    return trainer


def steps_of(folder: Path) -> dict[str, int]:
    found = {}
    for path in (folder / "checkpoints").iterdir():
        found[path.name] = torch.load(path, weights_only=True)["global_step"]
    return found


def make(folder: Path, every_n_steps: int = 0, keep_every_n_steps: int = 0) -> Checkpoint:
    return Checkpoint(every_n_steps, keep_every_n_steps, dirpath=str(folder / "checkpoints"))


def test_the_end_is_saved_whatever_the_cadence(tmp_path: Path) -> None:
    fit(tmp_path, 5, make(tmp_path, every_n_steps=2))
    assert steps_of(tmp_path) == {"last.ckpt": 5, "last-previous.ckpt": 4}


def test_snapshots_are_kept_on_request(tmp_path: Path) -> None:
    fit(tmp_path, 5, make(tmp_path, keep_every_n_steps=2))
    assert steps_of(tmp_path) == {"0000002.ckpt": 2, "0000004.ckpt": 4, "last.ckpt": 5}


def test_lightnings_last_finds_it(tmp_path: Path) -> None:
    fit(tmp_path, 2, make(tmp_path))
    assert fit(tmp_path, 4, make(tmp_path), resume=True).global_step == 4
    assert steps_of(tmp_path) == {"last.ckpt": 4, "last-previous.ckpt": 2}


class CrashAt(Callback):
    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("power cut")


def test_a_crash_loses_no_more_than_the_cadence(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 5, make(tmp_path, every_n_steps=2), CrashAt())
    assert steps_of(tmp_path) == {"last.ckpt": 2}


class Scored(BoringModel):
    """Has a score after every step."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    def validation_step(self, batch: object, batch_idx: int) -> None:
        self.log("val/score", self.scores[self.trainer.global_step - 1])


def fit_scored(checkpoint: Checkpoint, scores: list[float], resume: Path | None = None) -> None:
    trainer = Trainer(
        max_steps=len(scores),
        callbacks=[checkpoint],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        val_check_interval=1,
        check_val_every_n_epoch=None,
    )
    trainer.fit(Scored(scores), ckpt_path=resume, weights_only=True)


@pytest.mark.parametrize(("mode", "step"), [("min", 2), ("max", 4)])
def test_the_best_state_is_kept_also_over_a_resume(tmp_path: Path, mode: str, step: int) -> None:
    def best() -> Checkpoint:
        folder = str(tmp_path / "checkpoints")
        return Checkpoint(0, 0, 2, "val/score", mode, folder)  # type: ignore[arg-type]

    scores = [0.5, 0.1, float("nan"), 0.9]
    fit_scored(best(), scores)
    assert steps_of(tmp_path)["best.ckpt"] == step
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit_scored(best(), [*scores, 0.3], last)
    assert steps_of(tmp_path)["best.ckpt"] == step
    fit_scored(best(), [*scores, 0.3, -1.0 if mode == "min" else 2.0], last)
    assert steps_of(tmp_path)["best.ckpt"] == 6


def test_a_score_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    checkpoint = Checkpoint(keep_best="val/scroe", dirpath=str(tmp_path / "checkpoints"))
    with pytest.warns(UserWarning, match="val/scroe.*val/score"):
        fit_scored(checkpoint, [1.0])


class StopAt(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            trainer.should_stop = True


def test_the_state_of_an_interrupted_epoch_is_kept(tmp_path: Path) -> None:
    fit(tmp_path, 5, make(tmp_path), StopAt())
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 0
