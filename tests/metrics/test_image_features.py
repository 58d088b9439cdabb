import io

import pytest
import torch

from varlit.errors import UserError
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.measures import MeasureSettings, measure
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.references import make_reference

SETTINGS = MeasureSettings(score_splits=4, kid_subsets=5, kid_subset_size=20, neighbour_images=30)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def network(colours) -> FeatureNetwork:
    return FeatureNetwork(colours, "colours")


def gathered(network, ids: torch.Tensor, batch_size: int = 16) -> ImageFeatures:
    features = ImageFeatures(network, max_rows=50)
    for part in ids.split(batch_size):
        features.update(part, images(90, seed=1)[part] * 0.8)
    return features


def figures(network, features: ImageFeatures) -> dict[str, float]:
    real = ImageFeatures(network)
    real.update(torch.arange(60), images(60))
    return measure(features, make_reference(real, "real", "0"), SETTINGS).to_dict()


def test_batches_and_order_do_not_matter(network):
    whole = figures(network, gathered(network, torch.arange(90)))
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    other = figures(network, gathered(network, shuffled, batch_size=7))
    assert whole.keys() == other.keys()
    assert len(whole) == 9
    for name, value in whole.items():
        assert other[name] == pytest.approx(value, rel=1e-6), name


def test_three_parts_merge_in_any_order_into_what_one_process_gathers(network):
    # Network outputs differ in the last digit between batch sizes; statistics must not add to it.
    seen = [(torch.tensor([i]), network(images_of(i))) for i in range(90)]

    def take(ids: range) -> ImageFeatures:
        features = ImageFeatures(network, max_rows=50)
        for i in ids:
            features.add(*seen[i])
        return features

    whole = take(range(90)).reduced()
    parts = [take(range(rank, 90, 3)).state_dict() for rank in range(3)]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = ImageFeatures(network, max_rows=50)
        for rank in order:
            merged.merge(parts[rank])
        assert torch.equal(merged.ids, whole.ids)
        assert torch.equal(merged.rows.rows, whole.rows.rows)
        assert torch.equal(merged.logits.rows, whole.logits.rows)
        for name in ("pool", "spatial"):
            ours = getattr(merged, name).statistics()
            expected = getattr(whole, name).statistics()
            torch.testing.assert_close(ours.mean, expected.mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(ours.cov, expected.cov, rtol=1e-12, atol=1e-12)
        a, b = figures(network, merged), figures(network, take(range(90)))
        assert all(a[name] == pytest.approx(b[name], rel=1e-9) for name in b)
        exact = {name for name in b if "frechet" not in name}
        assert len(exact) == 7
        assert all(a[name] == b[name] for name in exact)


def images_of(sample: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(sample)
    return torch.randint(256, (1, 3, 8, 8), generator=draw, dtype=torch.uint8)


def test_a_resumed_evaluation_equals_an_uninterrupted_one_to_the_last_bit(network):
    batches = torch.arange(90).split(16)
    stopped = ImageFeatures(network, max_rows=50)
    for part in batches[:3]:
        stopped.update(part, images(90, seed=1)[part] * 0.8)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = ImageFeatures(network, max_rows=50)
    resumed.update(torch.tensor([7]), images(1))  # forgotten
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.ids.tolist() == list(range(48))
    assert resumed.image_px == 8
    for part in batches[3:]:
        resumed.update(part, images(90, seed=1)[part] * 0.8)
    whole = gathered(network, torch.arange(90))
    assert figures(network, resumed) == figures(network, whole)
    for one, other in zip(flat(resumed.state_dict()), flat(whole.state_dict()), strict=True):
        assert torch.equal(one, other)


def flat(state: dict) -> list[torch.Tensor]:
    found = [flat(v) if isinstance(v, dict) else [v] for v in state.values()]
    return [v for part in found for v in part if isinstance(v, torch.Tensor)]


def test_images_that_nothing_should_be_made_of_are_refused(network):
    features = ImageFeatures(network)
    broken = images(8)
    broken[3, 0, 0, 0], broken[5, 1, 2, 3] = torch.nan, torch.inf
    with pytest.raises(UserError, match="2 of 8 images hold NaN or infinity, such as sample 103"):
        features.update(torch.arange(100, 108), broken)
    with pytest.raises(UserError, match=r"an id each; got \(8, 3, 8, 8\) and 7 ids"):
        features.update(torch.arange(7), images(8))
    features.update(torch.arange(4), images(4))
    with pytest.raises(UserError, match="one size; got 4 px after 8 px"):
        features.update(torch.arange(4, 8), images(4)[:, :, :4, :4])
    assert features.count == 4


def test_a_sample_measured_twice_is_refused(network):
    features = gathered(network, torch.arange(20))
    state = gathered(network, torch.arange(18, 30)).state_dict()
    with pytest.raises(UserError, match="2 samples were measured twice, such as sample 18"):
        features.merge(state)
    again = gathered(network, torch.arange(20))
    again.update(torch.tensor([4]), images(1))
    with pytest.raises(UserError, match="1 samples were measured twice"):
        again.reduced()


def test_a_state_of_another_network_or_rounding_or_a_damaged_one_is_refused(network, colours):
    state = gathered(network, torch.arange(20)).state_dict()
    with torch.no_grad():
        colours.pool[0, 0] += 1
    other = FeatureNetwork(colours, "colours")
    with pytest.raises(UserError, match="another network or rounding"):
        ImageFeatures(other, 50).merge(state)
    with pytest.raises(UserError, match="another network or rounding"):
        ImageFeatures(network, 50, rounding="down").merge(state)
    del state["pool"]
    with pytest.raises(UserError, match="lack 'pool'"):
        ImageFeatures(network, 50).merge(state)


def test_floats_and_their_rounded_images_are_the_same(network):
    one, other = ImageFeatures(network), ImageFeatures(network)
    one.update(torch.arange(9), images(9))
    other.update(torch.arange(9), ((images(9) + 1) * 127.5).round().to(torch.uint8))
    assert torch.equal(one.rows.rows, other.rows.rows)
