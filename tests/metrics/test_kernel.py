import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from varlit.errors import UserError
from varlit.metrics.kernel import kernel_distance


def cloud(count: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_it_is_torch_fidelity_s_subset_by_subset():
    fake, real = cloud(60) + 0.3, cloud(50, seed=1)
    sizes = {"kid_subsets": 7, "kid_subset_size": 20}
    expected = kid_features_to_metric(fake.double(), real.double(), verbose=False, **sizes)
    found = kernel_distance(fake, real, num_subsets=7, subset_size=20)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)
    assert found.std > 0


def test_it_is_torchmetrics_of_all_images_at_once():
    from torchmetrics.image.kid import poly_mmd

    fake, real = cloud(40) + 0.3, cloud(40, seed=1)
    expected = float(poly_mmd(fake.double(), real.double(), degree=3, gamma=None, coef=1.0))
    found = kernel_distance(fake, real, num_subsets=2, subset_size=40)
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_two_samples_of_one_distribution_are_at_distance_0_on_average():
    # The estimate is unbiased: over independent subsets its mean lies within its own error.
    found = [
        kernel_distance(cloud(50, seed=2 * i), cloud(50, seed=2 * i + 1), 1, 50).mean
        for i in range(200)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    assert kernel_distance(cloud(50) + 1, cloud(50, seed=1), 1, 50).mean > 10 * np.std(found)


def test_too_few_or_broken_images_are_refused():
    with pytest.raises(UserError, match="got 30 generated and 999 real"):
        kernel_distance(cloud(30), cloud(999))
    broken = cloud(30)
    broken[2, 2] = torch.inf
    with pytest.raises(UserError, match="not all finite"):
        kernel_distance(broken, cloud(30), 3, 30)
