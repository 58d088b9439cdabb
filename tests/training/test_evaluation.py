"""The set of samples is one set, however it is shared out, cut into batches or cut off."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.metrics import ranks
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.measures import MeasureSettings, measure
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.metrics.npz_images import NpzImages
from varlit.metrics.references import make_reference
from varlit.training.evaluation import Subject, evaluate, missing_batches
from varlit.training.evaluation_config import EvaluationConfig

QUICK = EvaluationConfig(quick=40, batch_size=8, save_every_s=0)
PROTOCOL_KEYS = {
    *("sampling", "weights", "sampling_precision", "device", "image_px", "rounding", "resize"),
    *("features", "weights_sha256", "reference", "reference_sha256", "references", "num_images"),
    *("score_splits", "score_seed", "kid_subsets", "kid_seed", "neighbours", "versions"),
    *("is_quick", "remarks", "batch_size", "num_processes", "protocol_hash", "drawing_s"),
}


class Pixels(nn.Module):
    """Stands in for Inception: mean colours and a few pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(255.0))

    def forward(self, images: Tensor) -> Features:
        flat = images.float().flatten(1) / self.scale
        return Features(flat[:, :6], flat[:, :3], flat[:, -4:])


class Drawer:
    """Images that depend on their own label and seed alone; remembers what it was asked for."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.fails_after = fails_after

    def __call__(self, labels: Tensor, seeds: list[int]) -> Tensor:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked.extend(zip(labels.tolist(), seeds, strict=True))
        images = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]
        dimmed = (1 + labels.float().view(-1, 1, 1, 1) / 10).clamp(max=1.5)
        return (torch.stack(images) / dimmed) * 2 - 1


@pytest.fixture
def network() -> FeatureNetwork:
    return FeatureNetwork(Pixels(), "pixels")


@pytest.fixture
def references(network: FeatureNetwork):
    made = []
    for start in (1000, 2000):
        features = ImageFeatures(network, with_logits=False)
        features.update(torch.arange(64), Drawer()(torch.zeros(64), list(range(start, start + 64))))
        made.append(make_reference(features, f"photos {start}", str(start)))
    return tuple(made)


def subject(draw: Drawer) -> Subject:
    return Subject(draw, num_classes=10, image_px=4, weights={"var_sha256": "a"})


@pytest.fixture
def run(network, references):
    def run(config=QUICK, draw=None, folder=None):
        return evaluate(subject(draw or Drawer()), config, network, references[:1], folder)

    return run


def assert_equal(a, b, rel=1e-9):
    a, b = a.to_dict(), b.to_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value == pytest.approx(b[name], rel=rel, abs=1e-12), name


def test_the_set_does_not_depend_on_the_batch_size(run):
    whole, parts = Drawer(), Drawer()
    one = run(replace(QUICK, batch_size=40), whole)
    assert_equal(run(replace(QUICK, batch_size=7), parts), one)
    assert whole.asked == parts.asked == [(i % 10, i) for i in range(40)]


def test_the_seed_moves_all_images_and_the_labels_stay_even(run):
    draw = Drawer()
    run(replace(QUICK, seed=5, quick=30), draw)
    assert draw.asked == [(i % 10, i + 5) for i in range(30)]


def test_what_was_cut_off_goes_on_and_equals_what_was_not(run, tmp_path):
    whole = run(folder=tmp_path / "whole")
    first, rest = Drawer(fails_after=24), Drawer()
    with pytest.raises(KeyboardInterrupt):
        run(draw=first, folder=tmp_path / "cut")
    resumed = run(draw=rest, folder=tmp_path / "cut")
    assert_equal(resumed, whole)
    assert sorted(first.asked + rest.asked) == sorted((i % 10, i) for i in range(40))
    again = Drawer()
    assert_equal(run(draw=again, folder=tmp_path / "cut"), whole)
    assert again.asked == [], "a finished set is measured without drawing"
    assert len(list(tmp_path.glob("cut/*/rank-*.pt"))) == 1


def test_it_goes_on_with_another_batch_size(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(draw=Drawer(fails_after=24), folder=tmp_path)
    rest = Drawer()
    assert_equal(run(replace(QUICK, batch_size=9), rest, tmp_path), run())
    assert [seed for _, seed in rest.asked] == list(range(24, 40))


def test_another_protocol_begins_anew_and_another_reference_does_not(
    run, tmp_path, network, references
):
    run(folder=tmp_path)
    for other in (replace(QUICK, cfg_scale=3.0), replace(QUICK, quick=41), replace(QUICK, seed=1)):
        draw = Drawer()
        run(other, draw, tmp_path)
        assert len(draw.asked) == other.count
    draw = Drawer()
    both = evaluate(subject(draw), QUICK, network, references[::-1], tmp_path)
    assert draw.asked == []
    other = replace(subject(draw), weights={"var_sha256": "b"})
    evaluate(other, QUICK, network, references, tmp_path)
    assert len(draw.asked) == 40
    found = both.to_dict()
    name = "quick_frechet_pixels"
    assert found[f"{name} against photos 1000"] == run().to_dict()[name]
    assert found[name] != found[f"{name} against photos 1000"]
    assert not any("score" in key and "against" in key for key in found)


def test_a_damaged_or_superseded_file_is_drawn_anew(run, tmp_path):
    whole = run(folder=tmp_path)
    (file,) = tmp_path.glob("*/rank-*.pt")
    (file.with_name("rank-1-00000099.pt")).write_bytes(b"not a file of torch")
    (file.with_name("rank-2-00000008.pt")).write_bytes(file.read_bytes())
    draw = Drawer()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert_equal(run(draw=draw, folder=tmp_path), whole)
    assert draw.asked == []
    file.write_bytes(file.read_bytes()[:500])
    file.with_name("rank-2-00000008.pt").unlink()
    with pytest.warns(UserWarning, match="its images are drawn anew"):
        assert_equal(run(draw=draw, folder=tmp_path), whole)
    assert len(draw.asked) == 40
    assert len(list(tmp_path.glob("*/rank-*.pt"))) == 1, "what was of no use is gone"


def test_the_protocol_says_how_it_was_done(run):
    found = run()
    assert found.protocol.keys() >= PROTOCOL_KEYS
    sampling = found.protocol["sampling"]
    assert sampling["cfg_scale"] == 1.5
    assert sampling["guidance"] == "var"
    assert sampling["num_images"] == 40
    assert sampling["num_classes"] == 10
    assert {"python", "torch"} <= found.protocol["versions"].keys()
    json.dumps(found.protocol)
    assert found.protocol["is_quick"]
    assert all("quick_" in name for name in found.to_dict())


def test_samples_in_a_file_give_the_same_measures(run, tmp_path, network, references):
    config = replace(QUICK, samples=str(tmp_path / "out" / "samples.npz"), batch_size=7)
    found = run(config, folder=tmp_path)
    with np.load(config.samples, allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (40, 4, 4, 3)
        assert archive["arr_0"].dtype == np.uint8
    features = ImageFeatures(network)
    for ids, images in NpzImages(Path(config.samples)).batches(16):
        features.update(ids, images)
    read = measure(features, references[0], MeasureSettings(allow_few=True))
    assert read.to_dict() == pytest.approx(found.to_dict(), rel=1e-9, abs=1e-12)
    again = Drawer()
    run(config, again, tmp_path)
    assert again.asked == []
    assert not list(tmp_path.glob("*/samples.npy"))


def test_samples_go_on_after_a_cut_and_begin_anew_where_the_file_is_gone(run, tmp_path, capsys):
    config = replace(QUICK, samples=str(tmp_path / "samples.npz"))
    plain = replace(QUICK, samples=str(tmp_path / "plain.npz"))
    run(plain, folder=tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        run(config, Drawer(fails_after=16), tmp_path)
    assert not Path(config.samples).exists()
    rest = Drawer()
    run(config, rest, tmp_path)
    assert len(rest.asked) == 24
    expected = np.load(plain.samples)["arr_0"]
    assert np.array_equal(np.load(config.samples)["arr_0"], expected)
    Path(config.samples).unlink()
    anew = Drawer()
    run(config, anew, tmp_path)
    assert len(anew.asked) == 40
    said = capsys.readouterr().out
    assert f"{config.samples}, which held the images, is not there any more" in said
    assert np.array_equal(np.load(config.samples)["arr_0"], expected)


def test_nan_in_an_image_is_named_by_its_sample(run, tmp_path):
    class Broken(Drawer):
        def __call__(self, labels, seeds):
            images = super().__call__(labels, seeds)
            images[[seed == 21 for seed in seeds]] = torch.nan
            return images

    with pytest.raises(UserError, match="NaN or infinity, such as sample 21"):
        run(draw=Broken(), folder=tmp_path)


def test_missing_batches_keep_their_ranges():
    batches = missing_batches(10, 4, torch.tensor([0, 1, 2, 3, 5]))
    assert [ids.tolist() for ids in batches] == [[4, 6, 7], [8, 9]]
    groups = [[0, 2, 4], [1, 3, 5]]
    batches = missing_batches(6, 2, torch.tensor([0, 2, 4]), groups)
    assert [ids.tolist() for ids in batches] == [[1, 3, 5]]


def test_where_one_process_fails_all_of_them_do(monkeypatch):
    monkeypatch.setattr(ranks, "sum_over_ranks", lambda flag: flag + 1)
    with pytest.raises(UserError, match="another process"):
        ranks.in_all(lambda: 3)


def test_drawing_takes_the_seconds_of_all_runs(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(draw=Drawer(fails_after=24), folder=tmp_path)
    (file,) = tmp_path.glob("*/rank-*.pt")
    state = torch.load(file, weights_only=True)
    assert 0 < state["drawing_s"] < 1000
    torch.save(state | {"drawing_s": 5000.0}, file)
    for _ in range(2):
        found = run(folder=tmp_path).protocol["drawing_s"]
        assert 5000 <= found < 5100, "the rest comes on top, and nothing for a set that is whole"


def test_samples_under_another_name_are_copied_and_not_drawn(run, tmp_path, capsys):
    first = replace(QUICK, samples=str(tmp_path / "first.npz"))
    other = replace(QUICK, samples=str(tmp_path / "deep" / "other.npz"))
    run(first, folder=tmp_path)
    draw = Drawer()
    run(other, draw, tmp_path)
    assert draw.asked == []
    assert Path(other.samples).read_bytes() == Path(first.samples).read_bytes()
    assert capsys.readouterr().out == "", "nothing is gone, so nothing is said to be"
    Path(other.samples).write_bytes(b"something else")
    run(first, draw, tmp_path)
    assert len(draw.asked) == 40
    said = capsys.readouterr().out
    assert f"{other.samples}, which held the images, was changed since: all images are" in said


def test_samples_of_a_run_that_kept_none_are_drawn_anew_and_this_is_said(run, tmp_path, capsys):
    whole = run(folder=tmp_path)
    draw = Drawer()
    found = run(replace(QUICK, samples=str(tmp_path / "samples.npz")), draw, tmp_path)
    assert len(draw.asked) == 40
    said = capsys.readouterr().out
    assert "the earlier run wrote no samples, and kept features alone: all images are drawn" in said
    assert_equal(found, whole)


def test_precision_recall_and_kid_look_at_all_samples(run):
    found = run(replace(QUICK, reference_rows=30)).protocol
    assert found["sample_rows"] == found["precision_images"] == 40
    assert found["recall_images"] == 30
    assert run(replace(QUICK, reference_rows=0)).protocol["recall_images"] == 64
    with pytest.raises(UserError, match="reference_rows is -1"):
        replace(QUICK, reference_rows=-1)
