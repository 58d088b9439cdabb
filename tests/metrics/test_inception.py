import hashlib
from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from varlit.errors import UserError
from varlit.metrics.inception import (
    INCEPTION_FILE,
    find_inception,
    load_inception,
    open_inception,
)


@pytest.fixture(autouse=True)
def no_weights_at_hand(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv("VARLIT_INCEPTION", raising=False)


def test_weights_that_cannot_be_had_say_which_file_goes_where():
    with pytest.raises(UserError) as caught:
        open_inception(None)
    message = str(caught.value)
    assert str(Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE) in message
    assert "$VARLIT_INCEPTION" in message
    assert "no network in tests" in message


def test_the_given_file_wins_over_the_variable_and_that_over_the_cache(tmp_path, monkeypatch):
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    cached.parent.mkdir(parents=True)
    named, given = tmp_path / "named.pth", tmp_path / "given.pth"
    for path in (cached, named, given):
        path.touch()
    assert find_inception() == cached
    monkeypatch.setenv("VARLIT_INCEPTION", str(named))
    assert find_inception() == named
    assert find_inception(str(given)) == given


def test_the_file_name_is_that_of_torch_fidelity():
    assert fidelity.URL_INCEPTION_V3.rsplit("/", 1)[1] == INCEPTION_FILE


def test_a_missing_file_and_one_with_other_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=INCEPTION_FILE):
        find_inception(str(tmp_path / "absent.pth"))
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"other\.pth does not hold Inception's weights"):
        load_inception(other)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "evil.pth"
    torch.save(Evil(), path)
    with pytest.raises(UserError, match="does not hold"):
        load_inception(path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def network(random_inception):
    with pytest.warns(UserWarning, match="the numbers compare with no published ones"):
        return open_inception(str(random_inception))


@pytest.fixture(scope="module")
def weights(random_inception):
    return torch.load(random_inception, weights_only=True)


def test_it_gives_2048_features_1008_logits_and_2023_spatial_features(network, weights, photos):
    found = network(photos[:1])
    dims = (network.feature_dim, network.spatial_dim, network.num_classes)
    assert dims == (2048, 17 * 17 * 7, 1008)
    expected = found.pool @ weights["fc.weight"].T  # without the bias
    torch.testing.assert_close(found.logits, expected)


def test_the_spatial_features_are_those_of_adm_s_sfid_in_tensorflow_s_order(network, photos):
    seen = {}
    inner = network._module.extractor
    handle = inner.Mixed_6d.register_forward_hook(lambda _m, _x, out: seen.update(mixed_6=out))
    spatial = network(photos[:1]).spatial
    handle.remove()
    # `mixed_6/conv` is the first of the branches that Mixed_6d (TensorFlow's mixed_6) joins.
    assert seen["mixed_6"].shape == (1, 768, 17, 17)
    expected = seen["mixed_6"][:, :7].permute(0, 2, 3, 1).reshape(1, -1)
    assert torch.equal(spatial, expected)
    assert spatial.std() > 0


def test_only_the_known_file_goes_without_a_remark(network, random_inception):
    found = hashlib.sha256(random_inception.read_bytes()).hexdigest()
    assert network.hash == found
    assert found[:8] in network.remark
    assert network.is_inception
    told = network.protocol()
    assert told["weights_file"] == INCEPTION_FILE
    assert "no antialiasing" in told["resize"]


def test_the_resize_is_tensorflow_s_without_antialiasing(network, photos):
    seen = {}
    first = network._module.extractor.Conv2d_1a_3x3
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.update(image=inputs[0]))
    network(photos[:1])
    handle.remove()
    resized = seen["image"][0] * 128 + 128  # (3, 299, 299)
    photo, step = photos[0].float(), 40 / network.input_px
    for y, x in ((0, 0), (7, 100), (150, 298), (298, 298)):
        top, left = int(y * step), int(x * step)  # pixels begin at 0, not at a half
        below, right = min(top + 1, 39), min(left + 1, 39)
        dy, dx = y * step - top, x * step - left
        upper = photo[:, top, left] * (1 - dx) + photo[:, top, right] * dx
        lower = photo[:, below, left] * (1 - dx) + photo[:, below, right] * dx
        expected = upper * (1 - dy) + lower * dy
        torch.testing.assert_close(resized[:, y, x], expected, rtol=1e-5, atol=1e-3)
