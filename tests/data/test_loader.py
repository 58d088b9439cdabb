import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from varlit.data.loader import NOTES, ResumableLoader
from varlit.data.order import BatchIndex, EpochBatchSampler
from varlit.errors import UserError


class Counting:
    """Says which rows and views were asked for."""

    def __init__(self, num_samples: int = 24) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        return {"id": torch.from_numpy(index.ids), "view": torch.from_numpy(index.views)}


class Refusing(Counting):
    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        raise UserError("got this, expected that")


class Noting(Counting):
    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        return super().__getitem__(index) | {NOTES: [("a.png", "a.png is broken")]}


def make(num_workers: int = 0, batch_size: int = 4, **kwargs: int) -> ResumableLoader:
    return ResumableLoader(
        Counting(), EpochBatchSampler(24, batch_size, seed=1, shuffle=True, **kwargs), num_workers
    )


def ids_of(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_restored_loader_goes_on_with_the_next_batch(num_workers: int) -> None:
    whole = ids_of(make())
    interrupted = make(num_workers)
    iterator = iter(interrupted)
    seen = [next(iterator)["id"].tolist() for _ in range(2)]
    resumed = make(num_workers)
    resumed.load_state_dict(interrupted.state_dict())
    assert seen + ids_of(resumed) == whole
    assert ids_of(resumed) == whole, "the next pass starts at the beginning"


def test_a_position_survives_other_workers_and_another_world_size() -> None:
    whole = ids_of(make())
    state = make()
    iterator = iter(state)
    for _ in range(3):
        next(iterator)
    ranks = []
    for rank in range(2):
        loader = make(num_workers=2, rank=rank, world_size=2)
        loader.load_state_dict(state.state_dict())
        ranks.append(ids_of(loader))
    rest = [sorted(a + b) for a, b in zip(*ranks, strict=True)]
    assert rest == [sorted(ids) for ids in whole[3:]]


def test_a_position_at_the_end_of_an_epoch_goes_on_with_the_next() -> None:
    finished = make()
    list(finished)
    resumed = make()
    resumed.load_state_dict(finished.state_dict())
    expected = make()
    expected.sampler.set_epoch(1)
    assert ids_of(resumed) == ids_of(expected)


def test_the_epoch_may_be_set_after_the_iterator_is_made() -> None:
    loader = make()
    iterator = iter(loader)
    loader.sampler.set_epoch(2)
    assert {int(v) for batch in iterator for v in batch["view"]} == {3}


def test_setting_another_epoch_forgets_the_restored_position() -> None:
    loader = make()
    loader.load_state_dict({"epoch": 0, "samples_seen": 8, "num_samples": 24})
    loader.sampler.set_epoch(1)
    assert len(list(loader)) == len(loader)


def test_peeking_at_a_batch_does_not_move_the_start() -> None:
    loader = make()
    first = next(iter(loader))["id"]
    assert torch.equal(next(iter(loader))["id"], first)


def test_persistent_workers_see_the_epoch() -> None:
    loader = make(num_workers=1)
    views = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        views.append({int(v) for batch in loader for v in batch["view"]})
    assert views == [{1}, {2}]


def test_changed_data_start_the_epoch_anew() -> None:
    loader = make()
    with pytest.warns(UserWarning, match="30 samples, now there are 24"):
        loader.load_state_dict({"epoch": 3, "samples_seen": 8, "num_samples": 30})
    assert len(list(loader)) == len(loader)


def after(num_batches: int, **kwargs: int) -> dict[str, int]:
    """The state of a loader that has handed out some batches."""
    loader = make(**kwargs)
    iterator = iter(loader)
    for _ in range(num_batches):
        next(iterator)
    return loader.state_dict()


@pytest.mark.parametrize("changed", [{"batch_size": 8}, {"accumulation": 2}], ids=str)
def test_steps_of_another_size_are_refused_in_the_middle_of_an_epoch(
    changed: dict[str, int],
) -> None:
    with pytest.raises(UserError, match="4 samples a step, 12 of 24 into an epoch; now a step"):
        make(**changed).load_state_dict(after(3))


def test_at_the_end_of_an_epoch_steps_may_grow_but_not_shrink() -> None:
    grown = make(batch_size=8)
    grown.load_state_dict(after(6))
    expected = make(batch_size=8)
    expected.sampler.set_epoch(1)
    assert ids_of(grown) == ids_of(expected)
    with pytest.raises(UserError, match=r"data\.batch_size"):
        make(batch_size=2).load_state_dict(after(6))


def test_steps_may_change_before_the_first() -> None:
    loader = make(batch_size=8)
    loader.load_state_dict(after(0))
    assert ids_of(loader) == ids_of(make(batch_size=8))


def test_a_position_of_an_earlier_version_is_read() -> None:
    loader = make()
    loader.load_state_dict({"epoch": 0, "samples_seen": 8, "num_samples": 24})
    assert len(list(loader)) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_refusal_in_a_worker_arrives_as_it_was_said(num_workers: int) -> None:
    loader = ResumableLoader(Refusing(), EpochBatchSampler(24, 4), num_workers)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value) == "got this, expected that"


def test_each_topic_is_warned_of_once() -> None:
    loader = ResumableLoader(Noting(), EpochBatchSampler(24, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(loader)
    assert [str(w.message) for w in caught] == ["a.png is broken"]
    assert all(NOTES not in batch for batch in batches)


@pytest.mark.slow
def test_the_loader_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make())
    assert torch.equal(torch.get_rng_state(), before)


def test_views_and_ids_are_64_bit() -> None:
    batch = next(iter(make()))
    assert batch["id"].dtype == batch["view"].dtype == torch.int64
    assert np.unique(batch["id"].numpy()).size == 4
