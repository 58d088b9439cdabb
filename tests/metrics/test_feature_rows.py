import pytest
import torch

from varlit.errors import UserError
from varlit.metrics.feature_rows import FeatureRows, chosen


def rows_of(ids: torch.Tensor) -> torch.Tensor:
    """Two numbers that belong to an id."""
    return torch.stack((ids, ids * 2), dim=1).float()


def filled(ids: torch.Tensor, batch_size: int, limit: int | None = None) -> FeatureRows:
    store = FeatureRows(2, limit)
    for part in ids.split(batch_size):
        store.add(part, rows_of(part))
    return store


@pytest.mark.parametrize("limit", [None, 30])
def test_order_and_batches_do_not_matter(limit):
    ids = torch.randperm(200, generator=torch.Generator().manual_seed(0)) * 7
    one, other = filled(ids, 3, limit), filled(ids.flip(0), 64, limit)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.rows, rows_of(one.ids))
    assert len(one) == (limit or 200)


def test_parts_merge_into_the_whole_and_keep_to_the_limit():
    ids = torch.arange(300)
    whole = filled(ids, 50, limit=40)
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = FeatureRows(2, 40)
        for rank in order:
            merged.merge(filled(ids[rank::3], 10, limit=40).state_dict())
        assert torch.equal(merged.ids, whole.ids)
        assert torch.equal(merged.rows, whole.rows)


def test_memory_stays_within_a_small_multiple_of_the_limit():
    store = FeatureRows(2, 10)
    store.add(torch.arange(12), rows_of(torch.arange(12)))
    assert len(store) == 10
    for part in torch.arange(12, 1000).split(8):
        store.add(part, rows_of(part))
        assert sum(map(len, store._rows)) <= 2 * 10 + 8


def test_the_choice_is_spread_over_classes_and_the_same_in_a_longer_run():
    ids = torch.arange(10_000)
    few = ids[chosen(ids, 1000)]
    assert torch.equal(few, few.sort().values)
    by_block = torch.bincount(few // 1000, minlength=10)  # files in the order of classes
    assert by_block.min() > 60
    by_class = torch.bincount(few % 10, minlength=10)  # samples, class after class
    assert by_class.min() > 60
    half = ids[:5000]
    assert set(few[few < 5000].tolist()) <= set(half[chosen(half, 1000)].tolist())
    assert torch.equal(chosen(half, 6000), torch.arange(5000))


def test_rows_of_another_network_are_refused():
    with pytest.raises(UserError, match=r"\(3, 2\); expected \(N, 5\)"):
        FeatureRows(5).merge(filled(torch.arange(3), 3).state_dict())
