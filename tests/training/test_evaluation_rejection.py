"""Chosen images are one set too: however shared out, cut into batches or cut off; with its cost."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.generation.rejection.choice import Rejection, keep_all
from varlit.generation.rejection.rule import RejectionSettings
from varlit.generation.sampler import Drawn
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.metrics.references import make_reference
from varlit.training import evaluation
from varlit.training.evaluation import Subject, drawing_protocol, evaluate
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.var_evaluation import choosing

KEEP, NUM_CLASSES = 0.25, 3
CONFIG = EvaluationConfig(
    quick=40, batch_size=8, save_every_s=0, keep=KEEP, classifier="mobilenet_v2"
)


class Pixels(nn.Module):
    """Stands in for Inception."""

    def forward(self, images: Tensor) -> Features:
        flat = images.float().flatten(1) / 255
        return Features(flat[:, :6], flat[:, :3], flat[:, -4:])


class Drawer:
    """Images that depend on their own label and seed alone; remembers what it was asked for."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.fails_after = fails_after

    def __call__(self, labels: Tensor, seeds: list[int]) -> Drawn:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        pairs = list(zip(labels.tolist(), seeds, strict=True))
        self.asked.extend(pairs)
        images = torch.stack([picture(*pair) for pair in pairs])
        return Drawn(images, torch.tensor(seeds).unsqueeze(1), [])


def picture(label: int, seed: int) -> Tensor:
    drawn = torch.Generator().manual_seed(1000 * seed + label)
    return torch.rand(3, 4, 4, generator=drawn) * 2 - 1


def classify(images: Tensor) -> Tensor:
    """Each channel's mean speaks for a class."""
    return 8 * images.mean(dim=(2, 3))


def chooser(targets=(0, 1, 2), share=KEEP) -> Rejection:
    return Rejection(classify, targets, RejectionSettings(share))


def subject(draw: Drawer, config=CONFIG, rejection=None) -> Subject:
    plain = Subject(lambda *given: draw(*given).images, NUM_CLASSES, 4, {"var_sha256": "a"})
    return choosing(plain, draw, rejection or chooser(), config)


@pytest.fixture
def network() -> FeatureNetwork:
    return FeatureNetwork(Pixels(), "pixels")


@pytest.fixture
def references(network):
    features = ImageFeatures(network, with_logits=False)
    features.update(torch.arange(64), torch.stack([picture(9, seed) for seed in range(64)]))
    return (make_reference(features, "photos", "0"),)


@pytest.fixture
def run(network, references):
    def run(config=CONFIG, draw=None, folder=None, rejection=None):
        given = subject(draw or Drawer(), config, rejection)
        return evaluate(given, config, network, references, folder)

    return run


def counts(found) -> dict:
    """The cost, but for what a clock says."""
    cost = found.protocol["rejection_cost"]
    return {key: value for key, value in cost.items() if "second" not in key and "time" not in key}


def assert_equal(a, b):
    assert a.to_dict() == pytest.approx(b.to_dict(), rel=1e-9, abs=1e-12)
    assert counts(a) == counts(b)


def test_the_images_are_those_that_are_kept_of_all_labels_at_once(network):
    ids = torch.arange(CONFIG.count)
    labels, seeds = (ids % NUM_CLASSES).tolist(), ids.tolist()
    whole = keep_all(chooser().keep(Drawer(), labels, seeds, 16))
    chosen = subject(Drawer())
    assert sorted(i for group in chosen.groups for i in group) == seeds
    for group in chosen.groups:
        images = chosen.draw(torch.tensor([labels[i] for i in group]), list(group))
        assert torch.equal(images, whole.drawn.images[list(group)])


def test_the_set_does_not_depend_on_the_batch_size(run):
    one, parts = Drawer(), Drawer()
    found = run(replace(CONFIG, batch_size=100), one)
    assert_equal(run(replace(CONFIG, batch_size=7), parts), found)
    assert sorted(one.asked) == sorted(parts.asked)
    assert len(set(one.asked)) == len(one.asked) == 160


def test_what_was_cut_off_goes_on_and_equals_what_was_not_cost_and_all(run, tmp_path):
    whole = run(folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(draw=Drawer(fails_after=60), folder=tmp_path / "cut")
    rest = Drawer()
    assert_equal(run(draw=rest, folder=tmp_path / "cut"), whole)
    assert 0 < len(rest.asked) < 160
    again = Drawer()
    finished = run(draw=again, folder=tmp_path / "cut")
    assert_equal(finished, whole)
    assert again.asked == [], "a finished set is measured without drawing"
    assert finished.protocol["rejection_cost"]["seconds"] > 0


def test_the_cost_of_several_evaluations_is_told_apart(run):
    rejection = chooser()
    assert counts(run(rejection=rejection)) == counts(run(rejection=rejection))
    assert rejection.cost.num_drawn == 0


def test_the_cost_is_summed_over_processes(run, monkeypatch):
    monkeypatch.setattr(
        "varlit.training.evaluation_protocol.sum_over_ranks", lambda values: values * 2
    )
    cost = counts(run())
    assert (cost["images_drawn"], cost["images_kept"]) == (320, 80)
    assert cost["acceptance_share"] == KEEP


def test_the_protocol_names_the_choice_and_what_it_took(run):
    found = run(rejection=chooser((0, None, 2)))
    sampling = found.protocol["sampling"]
    assert sampling["keep"] == KEEP
    assert sampling["keep_group_size"] == 50
    assert sampling["classifier"] == "function"
    assert sampling["classifier_classes"] == "0,-,2"
    assert sampling["seeds"].startswith("chosen among 4 * (seed + id) + 0..3 of the same class")
    assert counts(found)["images_unjudged"] == 13
    assert counts(found)["images_drawn"] == 4 * (14 + 13)
    json.dumps(found.protocol)


def test_all_that_chooses_differently_is_another_protocol(run, network):
    def named(config, rejection):
        return drawing_protocol(subject(Drawer(), config, rejection), config, network)

    other = replace(CONFIG, keep=0.5)
    told = [
        named(CONFIG, chooser()),
        named(CONFIG, chooser((0, None, 2))),
        named(other, chooser(share=0.5)),
    ]
    assert len({json.dumps(one, sort_keys=True) for one in told}) == 3
    assert named(replace(CONFIG, unmatched="keep"), chooser()) == told[0]


def test_without_rejection_the_protocol_is_what_it_was_before_there_was_any(network):
    plain = Subject(lambda *given: Drawer()(*given).images, NUM_CLASSES, 4, {"var_sha256": "a"})
    config = EvaluationConfig(quick=40)
    assert drawing_protocol(plain, config, network)["sampling"] == {
        "cfg_scale": 1.5,
        "top_k": 900,
        "top_p": 0.96,
        "guidance": "var",
        "more_smooth": False,
        "seed": 0,
        "num_images": 40,
        "labels": "id mod classes",
        "seeds": "seed + id",
        "num_classes": 3,
    }
    assert "rejection_cost" not in drawing_protocol(plain, config, network)


def test_two_processes_that_share_the_groups_keep_what_one_keeps(
    run, network, references, tmp_path, monkeypatch
):
    whole = run()
    for rank in (1, 0):  # one after the other, in one folder: the second joins what is saved
        place = (rank, 2)
        monkeypatch.setattr(evaluation, "place_among_ranks", lambda p=place: p)
        config = replace(CONFIG, samples="")
        features = ImageFeatures(network)
        given, folder = subject(Drawer(), config), tmp_path / f"rank-{rank}"
        evaluation._gather(given, config, features, folder)
        own = [i for group in given.groups[rank::2] for i in group]
        assert features.ids.tolist() == sorted(own)
        # Both parts as the files of one evaluation.
        for file in folder.glob("rank-*.pt"):
            (tmp_path / "both").mkdir(exist_ok=True)
            file.rename(tmp_path / "both" / file.name)
    monkeypatch.undo()
    about = drawing_protocol(subject(Drawer()), CONFIG, network)
    folder = tmp_path / "joined" / evaluation.protocol_hash(about)
    folder.parent.mkdir()
    (tmp_path / "both").rename(folder)
    draw = Drawer()
    assert_equal(run(draw=draw, folder=tmp_path / "joined"), whole)
    assert draw.asked == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 0.25}, "keep 0.25 needs a classifier"),
        ({"keep": 0.0, "classifier": "x:y"}, "above 0 and up to 1"),
        ({"classifier": "x:y"}, "chooses nothing at keep 1"),
        ({"keep": 0.5, "classifier": "x:y", "classifier_classes": "1,b"}, "got `b`"),
        ({"keep": 0.5, "classifier": "x:y", "unmatched": "skip"}, "unmatched must be one of"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_at_once(given, said):
    with pytest.raises(UserError, match=said):
        EvaluationConfig(quick=9, **given)


def test_an_image_that_is_no_number_is_named_by_its_seed(run):
    class Broken(Drawer):
        def __call__(self, labels, seeds):
            made = super().__call__(labels, seeds)
            made.images[[seed == 21 for seed in seeds]] = torch.nan
            return made

    with pytest.raises(UserError, match="seed 21, is not a number"):
        run(draw=Broken())
