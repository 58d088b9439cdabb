import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from varlit.data.digits import DigitsDataModule
from varlit.errors import UserError


class Recorder(LightningModule):
    """Learns nothing; writes down which samples it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["id"].tolist())
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves once, after some steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class SaveAtEnd(SaveAt):
    """Saves when training is over."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def fit(
    folder: Path,
    num_workers: int,
    max_steps: int,
    callbacks: Sequence[Callback] = (),
    ckpt_path: Path | None = None,
    accumulate: int = 1,
    batch_size: int = 300,
) -> list[list[int]]:
    module = Recorder()
    data = DigitsDataModule(batch_size=batch_size, num_workers=num_workers, seed=5, image_size=8)
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return copy.deepcopy(module.seen)


# An epoch has 5 steps: 3 is the middle of the first, 5 its end, 7 the middle of the second.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "num_workers"), [(3, 0), (5, 0), (7, 0), (3, 2), (7, 2)], ids=str)
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(
    tmp_path: Path, step: int, num_workers: int
) -> None:
    checkpoint = tmp_path / "a.ckpt"
    whole = fit(tmp_path, num_workers, 12, [SaveAt(step, checkpoint)])
    assert len(whole) == 12
    resumed = fit(tmp_path, num_workers, 12, ckpt_path=checkpoint)
    assert resumed == whole[step:]


@pytest.mark.filterwarnings("ignore")
def test_accumulation_cuts_the_same_global_batches(tmp_path: Path) -> None:
    whole = fit(tmp_path, 0, 6)
    cut = fit(tmp_path, 0, 6, accumulate=3)
    joined = [list(chain(*cut[i : i + 3])) for i in range(0, len(cut), 3)]
    assert joined == whole


@pytest.mark.filterwarnings("ignore")
def test_larger_batches_from_the_end_of_an_epoch_walk_whole_epochs(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a.ckpt"
    fit(tmp_path, 0, 5, [SaveAt(5, checkpoint)])
    resumed = fit(tmp_path, 0, 11, ckpt_path=checkpoint, batch_size=500)
    fresh = fit(tmp_path, 0, 12, batch_size=500)
    assert resumed == fresh[3:9]
    # Saved when training is over, Lightning still asks for one batch of the epoch after.
    fit(tmp_path, 0, 5, [SaveAtEnd(5, checkpoint)])
    resumed = fit(tmp_path, 0, 12, ckpt_path=checkpoint, batch_size=500)
    assert resumed == [fresh[3], *fresh[6:12]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "changed"), [(3, 500), (5, 100)])
def test_batches_that_would_be_misaligned_are_refused(
    tmp_path: Path, step: int, changed: int
) -> None:
    checkpoint = tmp_path / "a.ckpt"
    fit(tmp_path, 0, step, [SaveAt(step, checkpoint)])
    with pytest.raises(UserError, match="300 samples a step"):
        fit(tmp_path, 0, 12, ckpt_path=checkpoint, batch_size=changed)
