import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from varlit.errors import UserError
from varlit.metrics.inception_score import inception_score


def logits(count: int = 200, num_classes: int = 12) -> torch.Tensor:
    return torch.randn(count, num_classes, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_it_is_torch_fidelity_s_of_samples_in_the_order_of_their_ids(splits):
    rows = logits(103)
    shuffled = torch.randperm(103, generator=torch.Generator().manual_seed(1))
    expected = isc_features_to_metric(rows, splits=splits)
    found = inception_score(rows[shuffled], splits, ids=shuffled)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-7, abs=1e-12)
    whole = isc_features_to_metric(rows, splits=1)["inception_score_mean"]
    assert found.whole == pytest.approx(whole, rel=1e-9)


def test_it_is_torchmetrics_of_one_split():
    from torchmetrics.image.inception import InceptionScore

    class Given(torch.nn.Module):
        def forward(self, images):
            return images.float().flatten(1)[:, :12] / 32

    metric = InceptionScore(feature=Given(), splits=1)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 2, 2), generator=draw, dtype=torch.uint8)
    metric.update(images)
    expected = float(metric.compute()[0])
    assert expected > 2
    assert inception_score(Given()(images), 1).mean == pytest.approx(expected, rel=1e-5)


def test_it_counts_equally_likely_certain_classes():
    certain = torch.eye(8).repeat(20, 1) * 1e3
    found = inception_score(certain, num_splits=1)
    assert (found.mean, found.std, found.whole) == pytest.approx((8, 0, 8))
    assert inception_score(torch.zeros(20, 8), num_splits=2).mean == pytest.approx(1)


@pytest.mark.parametrize("with_ids", [False, True])
def test_images_sorted_by_class_and_shuffled_ones_have_the_same_score(with_ids):
    rows, ids = logits(), torch.arange(200)
    order = rows.argmax(dim=1).argsort()
    by_class, given = rows[order], ids[order] if with_ids else None
    assert inception_score(by_class, ids=given) == inception_score(
        rows, ids=ids if with_ids else None
    )
    sorted_splits = [inception_score(part, 1).mean for part in by_class.tensor_split(10)]
    # What the shuffle prevents:
    assert inception_score(rows).mean > 1.5 * np.mean(sorted_splits)


def test_too_few_or_broken_images_are_refused():
    with pytest.raises(UserError, match="at least 10 images; got 9"):
        inception_score(logits(9))
    broken = logits(40)
    broken[7, 2] = torch.nan
    with pytest.raises(UserError, match="not all finite"):
        inception_score(broken)
