import numpy as np
import pytest
import scipy.linalg
import torch

from varlit.errors import UserError
from varlit.metrics.frechet import (
    FeatureStatistics,
    FeatureSums,
    check_enough,
    feature_statistics,
    frechet_distance,
    read_statistics,
    statistics_distance,
)


def features(count: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + seed


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return shift + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)


def test_it_equals_the_textbook_formula_on_well_conditioned_features():
    a, b = features(200), features(300, seed=1)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a.numpy(), b.numpy()), rel=1e-9)


def test_it_is_symmetric_and_0_only_for_the_same_set():
    a, b = features(50), features(50, seed=1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 1


def test_a_shift_costs_its_square_and_a_scale_the_change_of_deviations():
    a = features(100)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * a.shape[1], rel=1e-9)
    # A' = s^2 A: tr(A) + s^2 tr(A) - 2 s tr(A) = (s - 1)^2 tr(A), around the same mean.
    centred = a - a.mean(dim=0)
    variance = centred.square().sum() / (len(a) - 1)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * variance.item(), rel=1e-9)


def test_singular_covariances_do_no_harm():
    # Constant columns and fewer images than dimensions, as with 64-pixel digits.
    flat = torch.zeros(20, 64, dtype=torch.float64)
    flat[:, :4] = features(20, dim=4) * 1e3
    other = torch.zeros(20, 64, dtype=torch.float64)
    other[:, :4] = features(20, dim=4, seed=1) * 1e3
    trace = torch.cov(flat.T).trace().item()
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6 * trace)
    assert frechet_distance(flat, other) == pytest.approx(
        frechet_distance(flat[:, :4], other[:, :4]), rel=1e-6
    )
    away = torch.zeros(20, 64, dtype=torch.float64)
    away[:, 4:8] = flat[:, :4]  # no direction in common: the covariances do not overlap
    total = 2 * trace + 2 * flat.mean(dim=0).square().sum().item()
    assert frechet_distance(flat, away) == pytest.approx(total, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_real_digits_have_constant_pixels_and_a_finite_distance():
    from sklearn.datasets import load_digits

    digits = load_digits().data
    assert (digits.std(axis=0) == 0).any()
    distance = frechet_distance(digits[:1500], digits[1500:])
    assert distance == pytest.approx(by_scipy(digits[:1500], digits[1500:]), rel=1e-4)


def gaussians() -> tuple[FeatureStatistics, FeatureStatistics, float]:
    """Two whose covariances share their axes, and their distance by the closed form."""
    turn = torch.linalg.qr(features(40, dim=40)).Q
    draw = torch.Generator().manual_seed(3)
    a, b = (torch.rand(40, generator=draw, dtype=torch.float64) * 4 + 0.1 for _ in range(2))
    shift = torch.linspace(0, 0.5, 40, dtype=torch.float64)
    first = FeatureStatistics(shift * 0, turn @ a.diag() @ turn.T, None)
    second = FeatureStatistics(turn @ shift, turn @ b.diag() @ turn.T, None)
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    return first, second, float(expected)


def test_two_gaussians_are_at_the_distance_of_the_closed_form():
    first, second, expected = gaussians()
    assert statistics_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_large_samples_of_two_gaussians_come_as_near_to_it_as_theory_says():
    # One axis at a time: |m - n|^2 + (s - t)^2, so by the delta method an error of variance
    # 4 d^2 (s^2 + t^2) / N + 2 (s - t)^2 (s^2 + t^2) / N, and a bias of the order of D^2 / N.
    num, dim = 100_000, 6
    draw = torch.Generator().manual_seed(0)
    s = torch.tensor([0.5, 1, 1, 2, 3, 1], dtype=torch.float64)
    t = torch.tensor([1, 1, 2, 2, 1, 0.3], dtype=torch.float64)
    shift = torch.tensor([0, 0.5, 0, 1, 0, 2], dtype=torch.float64)
    a, b = (torch.randn(num, dim, generator=draw, dtype=torch.float64) for _ in range(2))
    expected = float(shift.square().sum() + (s - t).square().sum())
    variance = (s**2 + t**2) * (4 * shift**2 + 2 * (s - t) ** 2) / num
    bias = dim**2 * float((s**2 + t**2).max()) / num
    found = frechet_distance(a * s, b * t + shift)
    print(f"found {found:.5f}, closed form {expected:.5f}, deviation {variance.sum() ** 0.5:.5f}")
    assert abs(found - expected) < 4 * float(variance.sum()) ** 0.5 + bias


@pytest.mark.parametrize("count", [400, 30])  # more and fewer images than features
def test_it_equals_scipy_s_matrix_root_and_torchmetrics_on_the_same_features(count):
    from torchmetrics.image.fid import _compute_fid

    a, b = features(count, dim=64), features(count, dim=64, seed=1) * 0.5
    first, second = feature_statistics(a), feature_statistics(b)
    found = statistics_distance(first, second)
    theirs = float(_compute_fid(first.mean, first.cov, second.mean, second.cov))
    print(f"ours {found!r}, torchmetrics' {theirs!r}")
    assert found == pytest.approx(theirs, rel=1e-6)
    if count > 64:
        assert found == pytest.approx(by_scipy(a.numpy(), b.numpy()), rel=1e-6)


def test_fewer_images_than_features_are_refused_unless_asked_for():
    few, enough = feature_statistics(features(6)), feature_statistics(features(7))
    assert check_enough(enough, "generated") == ""
    assert check_enough(FeatureStatistics(few.mean, few.cov, None), "reference") == ""
    with pytest.raises(UserError, match=r"6 generated images for 6 features.*--quick"):
        check_enough(few, "generated")
    assert "far too large" in check_enough(few, "generated", allow_few=True)


def test_saved_sums_go_on_and_those_of_other_features_are_refused():
    whole, saved, resumed = FeatureSums(6), FeatureSums(6), FeatureSums(6)
    rows = features(60)
    for part in rows.split(20):
        whole.update(part)
    saved.update(rows[:20])
    resumed.merge(saved.state_dict())
    for part in rows[20:].split(20):
        resumed.update(part)
    a, b = resumed.statistics(), whole.statistics()
    assert a.count == b.count == 60
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.cov, b.cov)
    with pytest.raises(UserError, match="6 features; expected 5"):
        FeatureSums(5).merge(saved.state_dict())


def test_sums_of_parts_equal_the_statistics_of_the_whole():
    whole = features(100)
    sums = FeatureSums(6)
    for part in (whole[60:], whole[:1].float(), whole[1:60]):
        sums.update(part)
    statistics, expected = sums.statistics(), feature_statistics(whole)
    assert statistics.count == 100
    torch.testing.assert_close(statistics.mean, expected.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(statistics.cov, expected.cov, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(expected.cov, torch.cov(whole.T))


def test_statistics_survive_a_file(tmp_path):
    statistics = feature_statistics(features(50))
    path = tmp_path / "reference.npz"
    np.savez(path, mu=statistics.mean, sigma=statistics.cov, count=np.array(50))
    assert statistics_distance(read_statistics(path), statistics) == pytest.approx(0, abs=1e-9)
    assert read_statistics(path).count == 50


def test_a_reference_of_another_program_needs_mu_and_sigma_only(tmp_path):
    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.zeros(4, np.float32), sigma=np.eye(4), mu_s=np.zeros(9))
    statistics = read_statistics(path)
    assert statistics.count is None
    assert statistics.mean.dtype == statistics.cov.dtype == torch.float64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no reference statistics"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 broken", "cannot be read"),
        ({"arr_0": np.zeros(3)}, "expected `mu` and `sigma`"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"sigma \(D, D\)"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "must be finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, np.inf], [np.inf, 1]])}, "must be finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1], [0, 1]])}, "must be a covariance"),
        ({"mu": np.array([None, 1], object), "sigma": np.eye(2)}, "cannot be read"),
    ],
)
def test_a_file_that_is_no_reference_is_named(tmp_path, content, message):
    path = tmp_path / "reference.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message) as caught:
        read_statistics(path)
    assert str(path) in str(caught.value)


def test_features_of_other_networks_are_not_compared():
    with pytest.raises(UserError, match="6 and 5 dimensions"):
        frechet_distance(features(10), features(10, dim=5))


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 images"):
        frechet_distance(features(1), features(10))


def test_a_feature_that_is_not_finite_never_becomes_a_distance():
    broken = features(10)
    broken[3, 2] = torch.nan
    with pytest.raises(UserError, match="not all finite"):
        frechet_distance(broken, features(10))
