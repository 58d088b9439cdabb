import numpy as np
import pytest

from varlit.data.stream_order import ShardSampler

COUNTS = np.array([10, 7, 0, 12, 3, 8])
NUM = int(COUNTS.sum())


def make(rank: int = 0, world_size: int = 1, batch_size: int = 4, **kwargs: int) -> ShardSampler:
    return ShardSampler(COUNTS, kwargs.pop("buffer", 5), batch_size, rank, world_size, **kwargs)


def ids_of(sampler: ShardSampler, start: int = 0) -> list[list[int]]:
    return [index.ids.tolist() for index in sampler.batches(start)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_out_an_epoch_and_all_have_as_many_steps(world_size: int) -> None:
    ranks = [ids_of(make(rank, world_size)) for rank in range(world_size)]
    assert {len(steps) for steps in ranks} == {NUM // 4}
    assert {len(step) for steps in ranks for step in steps} == {4 // world_size}
    seen = [i for steps in ranks for step in steps for i in step]
    assert len(set(seen)) == len(seen) == NUM // 4 * 4, "only the remainder is missing"


def test_a_step_can_be_entered_anywhere() -> None:
    assert ids_of(make(), 4) == ids_of(make())[4:]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    again = make()
    orders = [ids_of(make()), ids_of(make(seed=100))]
    again.set_epoch(1)
    orders.append(ids_of(again))
    assert orders[0] == ids_of(make())
    assert len({str(order) for order in orders}) == 3
    assert {int(v) for index in again.batches(0) for v in index.views} == {2}


def shard_of(rows: list[int]) -> list[int]:
    return (np.searchsorted(np.cumsum(COUNTS), rows, side="right")).tolist()


def test_without_a_buffer_shards_are_walked_in_another_order() -> None:
    rows = [row for step in ids_of(make(buffer=0, batch_size=1)) for row in step]
    shards = shard_of(rows)
    runs = [shard for i, shard in enumerate(shards) if i == 0 or shards[i - 1] != shard]
    assert sorted(runs) == [0, 1, 3, 4, 5], "each in one run"
    assert runs != sorted(runs)
    for shard in runs:
        inside = [row for row in rows if shard_of([row]) == [shard]]
        assert inside == sorted(inside)


def test_as_many_images_wait_as_the_buffer_says() -> None:
    counts, buffer = np.full(50, 100), 300
    sampler = ShardSampler(counts, buffer, 1)
    plain = ShardSampler(counts, 0, 1)
    rows = np.concatenate([index.ids for index in sampler.batches(0)])
    place = np.empty(len(rows), dtype=np.int64)
    place[np.concatenate([index.ids for index in plain.batches(0)])] = np.arange(len(rows))
    read = np.maximum.accumulate(place[rows]) + 1  # images read before each step
    waiting = read - np.arange(len(rows)) - 1
    middle = waiting[1000:4000]
    assert 0.9 * buffer < middle.mean() < 1.1 * buffer
    assert waiting.max() < 1.3 * buffer
    assert np.std(place[rows] - np.arange(len(rows))) > buffer / 2, "well mixed"


def test_without_shuffling_rows_come_as_they_are() -> None:
    sampler = ShardSampler(COUNTS, 5, 4, rank=1, world_size=2, shuffle=False)
    assert ids_of(sampler)[:2] == [[1, 3], [5, 7]]
    assert {int(v) for index in sampler.batches(0) for v in index.views} == {0}
