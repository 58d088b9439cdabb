import numpy as np
import pytest

from varlit.data.order import BatchSampler, EncodingBatches, EpochBatchSampler, evaluation_batches
from varlit.errors import UserError


def ids_of(sampler: BatchSampler, start: int = 0) -> list[np.ndarray]:
    return [batch.ids for batch in sampler.batches(start)]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_global_batches_are_the_same_on_any_number_of_processes(
    world_size: int, accumulation: int
) -> None:
    whole = ids_of(EpochBatchSampler(50, 8, seed=3))
    ranks = [
        ids_of(EpochBatchSampler(50, 8, rank, world_size, accumulation, seed=3))
        for rank in range(world_size)
    ]
    assert all(len(rank) == len(whole) * accumulation for rank in ranks)
    for number, batch in enumerate(whole):
        steps = range(number * accumulation, (number + 1) * accumulation)
        gathered = np.concatenate([rank[step] for step in steps for rank in ranks])
        assert sorted(gathered) == sorted(batch)


def test_epochs_differ_and_come_back() -> None:
    sampler = EpochBatchSampler(64, 8)
    first = np.concatenate(ids_of(sampler))
    sampler.set_epoch(1)
    second = np.concatenate(ids_of(sampler))
    sampler.set_epoch(0)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, np.concatenate(ids_of(sampler)))
    assert sorted(first) == list(range(64))


def test_training_draws_a_new_view_each_epoch_and_plain_ones_without_shuffling() -> None:
    sampler = EpochBatchSampler(8, 4)
    sampler.set_epoch(5)
    assert all((batch.views == 6).all() for batch in sampler.batches(0))
    plain = EpochBatchSampler(8, 4, shuffle=False)
    plain.set_epoch(5)
    assert all((batch.views == 0).all() for batch in plain.batches(0))
    assert np.concatenate(ids_of(plain)).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation", "nearest"),
    [(100, 8, 3, "use 96 or 120"), (4, 8, 1, "use 8"), (7, 2, 1, "use 6 or 8")],
)
def test_a_batch_that_does_not_divide_is_refused(
    batch_size: int, world_size: int, accumulation: int, nearest: str
) -> None:
    with pytest.raises(UserError, match=nearest):
        EpochBatchSampler(1000, batch_size, 0, world_size, accumulation)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="64 is more than the 40 training samples"):
        EpochBatchSampler(40, 64)


@pytest.mark.parametrize("num_samples", [4, 5, 9, 10, 297])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_sees_each_sample_once_in_equally_many_batches(
    num_samples: int, world_size: int, batch_size: int
) -> None:
    ranks = [
        ids_of(evaluation_batches(num_samples, batch_size, rank, world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(np.concatenate([ids for rank in ranks for ids in rank])) == list(
        range(num_samples)
    )
    sizes = [len(ids) for rank in ranks for ids in rank]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + 1
    if world_size == 1:
        assert max(sizes) <= batch_size


def test_fewer_samples_than_processes_are_refused() -> None:
    with pytest.raises(UserError, match="3 samples cannot be evaluated by 4 processes"):
        evaluation_batches(3, 8, 0, 4)


def test_encoding_walks_all_crops_of_an_image_next_to_each_other() -> None:
    sampler = EncodingBatches([range(4, 5), range(9, 12)], range(1, 4), batch_size=7)
    rows = [list(zip(b.ids, b.views, strict=True)) for b in sampler.batches(0)]
    four = [(4, 1), (4, 2), (4, 3)]
    pair = [(9, 1), (9, 2), (9, 3), (10, 1), (10, 2), (10, 3)]
    assert rows == [four, pair, [(11, 1), (11, 2), (11, 3)]]
    assert [b.ids.tolist() for b in sampler.batches(2)] == [[11] * 3]
    assert len(sampler) == 3
    assert len(EncodingBatches([range(2)], range(1, 4), batch_size=2)) == 2, "at least an image"
    assert len(EncodingBatches([], range(1), batch_size=2)) == 0


def test_what_is_encoded_together_depends_on_the_shard_alone() -> None:
    shards = [range(0, 7), range(7, 14), range(14, 17)]
    whole = {b.ids[0]: b.ids.tolist() for b in EncodingBatches(shards, range(1), 4).batches(0)}
    for part in ([shards[2]], [shards[0], shards[2]], [shards[1]]):
        for batch in EncodingBatches(part, range(1), 4).batches(0):
            assert whole[batch.ids[0]] == batch.ids.tolist()
