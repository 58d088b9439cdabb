"""The checkpoint callback: at its cadence, at the end, and not over an interrupted state."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel

from varlit.cli.checkpoint import Checkpoint


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
    assert steps_of(tmp_path) == {"last.ckpt": 5}


def test_snapshots_are_kept_on_request(tmp_path: Path) -> None:
    fit(tmp_path, 5, make(tmp_path, keep_every_n_steps=2))
    assert steps_of(tmp_path) == {"0000002.ckpt": 2, "0000004.ckpt": 4, "last.ckpt": 5}


def test_lightnings_last_finds_it(tmp_path: Path) -> None:
    fit(tmp_path, 2, make(tmp_path))
    assert fit(tmp_path, 4, make(tmp_path), resume=True).global_step == 4
    assert steps_of(tmp_path) == {"last.ckpt": 4}


class CrashAt(Callback):
    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("power cut")


def test_a_crash_loses_no_more_than_the_cadence(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 5, make(tmp_path, every_n_steps=2), CrashAt())
    assert steps_of(tmp_path) == {"last.ckpt": 2}


class StopAt(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            trainer.should_stop = True


def test_the_state_of_an_interrupted_epoch_is_kept(tmp_path: Path) -> None:
    fit(tmp_path, 5, make(tmp_path), StopAt())
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 0
