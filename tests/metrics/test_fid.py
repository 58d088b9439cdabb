import json

import numpy as np
import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.metrics.fid import InceptionMetrics
from varlit.metrics.frechet import frechet_distance, write_statistics
from varlit.metrics.inception_score import inception_score
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.reconstruction import to_uint8

DIM, CLASSES = 6, 5


class TinyNetwork(nn.Module):
    """Random features of uint8 images, in the place of Inception."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Parameter(torch.randn(3 * 16, DIM, generator=generator))
        self.classes = nn.Parameter(torch.randn(DIM, CLASSES, generator=generator))

    def forward(self, images):
        assert images.dtype == torch.uint8
        pooled = nn.functional.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)
        features = pooled @ self.features
        return features, features @ self.classes


def tiny_metrics(**options) -> InceptionMetrics:
    return InceptionMetrics(feature_network=TinyNetwork, feature_name="tiny", **options)


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1


def test_it_is_the_frechet_distance_of_the_network_s_features():
    real, fake = images(60), images(50, seed=1) * 0.5
    metrics = tiny_metrics()
    metrics.update_reference(real)
    metrics.update(fake)
    report = metrics.compute()
    network = TinyNetwork()
    with torch.no_grad():
        expected = frechet_distance(network(to_uint8(real))[0], network(to_uint8(fake))[0])
        logits = network(to_uint8(fake))[1]
    assert report.fid == pytest.approx(expected, rel=1e-5)
    assert (report.num_images, report.num_reference_images) == (50, 60)
    score = inception_score(logits)
    assert (report.inception_score_mean, report.inception_score_std) == pytest.approx(
        (score.mean, score.std)
    )


def test_batches_order_and_number_format_do_not_matter():
    real, fake = images(60), images(50, seed=1)
    once, twice = tiny_metrics(), tiny_metrics()
    once.update_reference(real)
    once.update(fake)
    for part in (real[40:], real[:40]):
        twice.update_reference(part)
    for part in (to_uint8(fake[20:]), fake[:20].double()):
        twice.update(part)
    a, b = once.compute(), twice.compute()
    assert a.fid == pytest.approx(b.fid, rel=1e-6)
    assert a.inception_score_mean == pytest.approx(b.inception_score_mean, rel=1e-6)


def test_the_same_images_are_at_distance_0_and_reset_keeps_the_reference():
    metrics = tiny_metrics()
    metrics.update_reference(images(30))
    metrics.update(images(30, seed=1))
    metrics.reset()
    metrics.update(images(30))
    assert metrics.compute().fid == pytest.approx(0, abs=1e-6)


def test_only_inception_s_number_is_called_fid():
    metrics = tiny_metrics()
    metrics.update_reference(images(30))
    metrics.update(images(30, seed=1))
    plain = metrics.compute().to_dict()
    assert "frechet_tiny" in plain
    assert "tiny_score_mean" in plain
    assert not {"fid", "inception_score_mean"} & plain.keys()
    assert plain["protocol"]["rounding"] == "uint8, to nearest"
    json.dumps(plain)


def test_a_reference_file_stands_for_its_images(tmp_path):
    metrics = tiny_metrics()
    metrics.update_reference(images(30))
    write_statistics(metrics.reference_statistics(), tmp_path / "reference.npz")
    fresh = tiny_metrics()
    fresh.load_reference(tmp_path / "reference.npz")
    for either in (metrics, fresh):
        either.update(images(30, seed=1))
    assert fresh.compute().fid == pytest.approx(metrics.compute().fid)
    assert fresh.protocol["reference"] == "reference.npz"
    assert len(fresh.protocol["reference_sha256"]) == 64


def test_a_reference_of_other_features_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match=f"3 features, but the network gives {DIM}"):
        tiny_metrics().load_reference(tmp_path / "other.npz")


def test_without_reference_or_images_it_says_what_is_missing():
    metrics = tiny_metrics()
    metrics.update(images(30))
    with pytest.raises(UserError, match="nothing to compare with"):
        metrics.compute()
    metrics.update_reference(images(30))
    metrics.reset()
    with pytest.raises(UserError, match="at least 10 images; got 0"):
        metrics.compute()


def test_nothing_of_the_network_reaches_a_module_tree():
    holder = nn.Module()
    holder.metrics = tiny_metrics()
    assert holder.state_dict() == {}
    assert list(holder.parameters()) == []


def test_images_that_hold_nan_never_become_black_ones():
    metrics = tiny_metrics()
    broken = images(8)
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="1 of 8 images hold NaN"):
        metrics.update(broken)


def test_a_network_without_classes_gives_a_distance_and_no_score():
    metrics = InceptionMetrics(network=FeatureNetwork(Means(), "means"))
    metrics.update_reference(images(8))
    metrics.update(images(8))
    report = metrics.compute()
    assert report.inception_score_mean is None
    assert report.to_dict()["frechet_means"] == pytest.approx(0, abs=1e-9)


class Means(nn.Module):
    def forward(self, pixels):
        return pixels.float().mean(dim=(2, 3))
