from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from varlit.data.digits import DigitsDataModule
from varlit.data.loader import ResumableLoader
from varlit.data.order import EncodingBatches
from varlit.errors import UserError


def attached(
    rank: int = 0, world_size: int = 1, accumulation: int = 1, overfit: int = 0, **kwargs: int
) -> DigitsDataModule:
    data = DigitsDataModule(**{"image_size": 8, **kwargs})
    trainer: Any = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulation,
        overfit_batches=overfit,
    )
    data.trainer = trainer
    return data


def test_the_batch_size_is_that_of_the_whole_run() -> None:
    data = attached(rank=1, world_size=2, accumulation=3, batch_size=60)
    assert len(next(iter(data.train_dataloader()))["id"]) == 10
    assert data.device_batch_size == 10


def test_a_batch_that_does_not_divide_is_refused_in_training_only() -> None:
    data = attached(world_size=3, batch_size=64)
    with pytest.raises(UserError, match="use 63 or 66"):
        data.train_dataloader()
    loader = data.val_dataloader()
    assert isinstance(loader, ResumableLoader)
    assert max(len(batch["id"]) for batch in loader) <= 21


def test_overfitting_repeats_the_same_batches() -> None:
    loader = attached(overfit=2, batch_size=4).train_dataloader()
    loader.sampler.set_epoch(3)
    assert next(iter(loader))["id"].tolist() == [0, 1, 2, 3]


def test_prediction_shares_out_both_splits() -> None:
    ranks = [attached(rank, 2, batch_size=256).predict_dataloader() for rank in range(2)]
    for split, size in enumerate((1500, 297)):
        ids = torch.cat([batch["id"] for rank in ranks for batch in rank[split]])
        assert sorted(ids.tolist()) == list(range(size))


def test_prediction_follows_the_plan() -> None:
    data = attached(batch_size=4)
    sizes: dict[str, int] = {}

    def plan(num_images: Mapping[str, int]) -> dict[str, EncodingBatches]:
        sizes.update(num_images)
        return {
            "train": EncodingBatches([range(7, 8)], range(1, 3), 4),
            "val": EncodingBatches([], range(1), 4),
        }

    data.plan_encoding = plan
    train, val = data.predict_dataloader()
    assert sizes == {"train": 1500, "val": 297}
    [batch] = list(train)
    assert batch["id"].tolist() == [7, 7]
    assert batch["crop"].tolist() == [1, 2]
    assert len(val) == 0


@pytest.mark.parametrize(
    "kwargs", [{"batch_size": 0}, {"num_workers": -1}, {"image_size": 0}, {"image_size": 7}]
)
def test_numbers_out_of_range_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected"):
        DigitsDataModule(**kwargs)
