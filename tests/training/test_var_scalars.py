import pytest
import torch

from varlit.training.var_scalars import ClippingCount, UpdateRatio


def test_the_share_of_clipped_steps_is_counted_anew_after_each_reading():
    count = ClippingCount({})
    assert count.read() == 0
    for norm in (1.0, 3.0, 5.0, 2.0):
        count.add(torch.tensor(norm), limit=2.0)
    assert count.read() == 0.5
    count.add(torch.tensor(9.0), limit=2.0)
    assert count.read() == 1


def test_the_update_ratio_is_change_over_size():
    weight = torch.full((2, 2), 10.0)
    ratio = UpdateRatio(lambda: weight)
    assert ratio.end() is None, "nothing was noted"
    ratio.begin()
    weight.add_(0.1)
    assert float(ratio.end()) == pytest.approx(0.01, rel=1e-4)
    assert ratio.end() is None
