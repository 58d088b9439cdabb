import hashlib
from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from varlit.errors import UserError
from varlit.metrics.fid import FIDReport, InceptionMetrics
from varlit.metrics.inception import INCEPTION_FILE, find_inception, load_inception


@pytest.fixture(autouse=True)
def no_weights_at_hand(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv("VARLIT_INCEPTION", raising=False)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """Inception with random weights, in the format of the real file."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        extractor = fidelity.FeatureExtractorInceptionV3
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        weights = extractor("random", ["2048"]).state_dict()
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    torch.save(weights, path)
    return path


def test_weights_that_cannot_be_had_say_which_file_goes_where():
    with pytest.raises(UserError) as caught:
        InceptionMetrics()
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


def test_a_file_in_the_right_format_gives_both_features_and_a_full_protocol(random_weights):
    metrics = InceptionMetrics(weights=str(random_weights))
    features, logits = metrics._extract(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 2048)
    weights = torch.load(random_weights, weights_only=True)
    torch.testing.assert_close(logits, features @ weights["fc.weight"].T)  # without the bias
    expected = hashlib.sha256(random_weights.read_bytes()).hexdigest()
    assert metrics.protocol["weights_sha256"] == expected
    assert metrics.protocol["weights_file"] == INCEPTION_FILE
    assert "no antialiasing" in metrics.protocol["resize"]
    report = FIDReport(1.5, 30.0, 0.5, 100, None, metrics.protocol).to_dict()
    assert (report["fid"], report["inception_score_mean"]) == (1.5, 30.0)
