"""`varlit evaluate` and `varlit var sweep` with a small network in Inception's place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from varlit.cli import main as command_line
from varlit.cli.results import evaluate
from varlit.metrics.networks import FeatureNetwork, Features, register_network
from varlit.models.classifier import Classifier
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(32, (1, 1), 1, 0.0, 16, 4, (1, 2))
NETWORK = ("--network", "tinted")


class Tinted(nn.Module):
    def forward(self, images: Tensor) -> Features:
        flat = images.float().flatten(1) / 255
        return Features(flat[:, :4], flat[:, :3], flat[:, -4:] * 9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))
    register_network("tinted", lambda weights: FeatureNetwork(Tinted(), "tinted"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_tokenizer(VQVAE(TOKENIZER), tmp_path / "tok")
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 3)
    for weight in var.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    save_var(var, tmp_path / "tok", tmp_path / "var")
    save_var(var, None, tmp_path / "alone")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", pixels)
    np.savez(tmp_path / "large.npz", np.zeros((40, 8, 8, 3), dtype=np.uint8))
    return tmp_path


def run(*words: object) -> int:
    return command_line.main([str(word) for word in words])


def test_a_folder_without_a_recipe_is_measured(runs: Path, capsys):
    words = ["evaluate", "var", "--root", runs, "--quick", 24, "--reference", runs / "real.npz"]
    assert run(*words, *NETWORK, "--batch_size", 24) == 0
    said = capsys.readouterr().out
    for line in (
        "quick Frechet distance (tinted)",
        "var: a quick look, 24 images",
        "guidance 1.5 (var)",
        "real.npz, 40 im",
    ):
        assert line in said
    first = json.loads((runs / "var" / "metrics.json").read_text())
    assert first["protocol"]["sampling"]["cfg_scale"] == 1.5
    assert first["protocol"]["num_images"] == 24
    assert first["protocol"]["is_quick"]
    assert first["protocol"]["drawn"] in ("eager", "packed")
    out = runs / "deep" / "m.json"
    assert run(*words, *NETWORK, "--batch_size", 5, "--out", out) == 0
    again = json.loads(out.read_text())
    assert not (out.parent / "evaluation").exists(), "--out moves the figures and not what is drawn"
    assert len(list((runs / "var" / "evaluation").iterdir())) == 1
    name = "quick_frechet_tinted"
    assert again[name] == pytest.approx(first[name], rel=1e-3)
    assert again["protocol"]["protocol_hash"] == first["protocol"]["protocol_hash"]
    assert not any(key.startswith(("fid", "precision", "quick_fid")) for key in again)


def judge(outputs: int) -> Classifier:
    """In place of a classifier with weights."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, outputs))
    return Classifier(network, "toy", weights_hash="c" * 64)


@pytest.fixture
def choosing(monkeypatch) -> tuple[str, ...]:
    """Flags of rejection sampling, with a classifier of the model's three classes."""
    monkeypatch.setattr("varlit.models.classifier.open_classifier", lambda *_: judge(3))
    return "--keep", "0.25", "--classifier", "toy:toy"


def test_chosen_images_are_told_from_all_everywhere(runs: Path, choosing, capsys):
    words = ["evaluate", "var", "--root", runs, "--quick", 24, "--reference", runs / "real.npz"]
    assert run(*words, *NETWORK, *choosing, "--batch_size", 24) == 0
    said = capsys.readouterr().out
    assert "var-re (rejection sampling, keep 0.25): a quick look, 24 images" in said
    assert "keep 0.25 by toy cccccccc, in groups of 50; its outputs: class i is output i" in said
    assert "kept 24 of 96 images drawn (25.0%)" in said
    first = json.loads((runs / "var" / "metrics.json").read_text())
    assert first["protocol"]["sampling"]["keep"] == 0.25
    assert first["protocol"]["sampling"]["classifier_weights_sha256"] == "c" * 64
    assert first["protocol"]["rejection_cost"]["images_drawn"] == 96
    # Another batch size is the same protocol: nothing is drawn, and the cost was kept.
    assert run(*words, *NETWORK, *choosing, "--batch_size", 5) == 0
    again = json.loads((runs / "var" / "metrics.json").read_text())
    assert again["protocol"]["protocol_hash"] == first["protocol"]["protocol_hash"]
    assert again["protocol"]["rejection_cost"] == first["protocol"]["rejection_cost"]
    assert run("compare", "var", "--root", runs) == 0
    assert "rejection sampling, keep 0.25" in capsys.readouterr().out


def test_the_kept_images_are_those_of_varlit_sample(runs: Path, choosing, monkeypatch):
    torch.manual_seed(1)
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 1)
    for weight in var.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    save_var(var, runs / "tok", runs / "one")
    monkeypatch.setattr("varlit.models.classifier.open_classifier", lambda *_: judge(3))
    words = ["one", "--root", runs, *choosing, "--classifier_classes", "2"]
    drawn: list[Tensor] = []
    monkeypatch.setattr(
        "varlit.viz.grids.image_grid",
        lambda images, *_, **__: drawn.append(images) or np.zeros((4, 4, 3), np.uint8),
    )
    assert run("sample", *words, "--per_class", 20, "--out", runs / "s.png") == 0
    words += ["--quick", 20, "--reference", runs / "real.npz", *NETWORK]
    assert run("evaluate", *words, "--samples", runs / "s.npz") == 0
    with np.load(runs / "s.npz", allow_pickle=False) as archive:
        measured = torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2)
    expected = ((drawn[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(measured, expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "0.5"], "keep 0.5 needs a classifier"),
        (["--keep", "0.5", "--classifier", "toy:toy"], "has 5 classes and the model 3"),
        (
            ["--keep", "0.5", "--classifier", "toy:toy", "--classifier_classes", "4,-,0"],
            "toy:toy has no class for: 1",
        ),
        (["--keep", "0.5", "--classifier", "no:toy"], "timm:NAME or mobilenet_v2; got 'no:toy'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_anything_is_drawn(
    runs: Path, words, message, capsys, monkeypatch
):
    if "no:toy" not in words:
        monkeypatch.setattr("varlit.models.classifier.open_classifier", lambda *_: judge(5))
    given = ["--quick", 24, "--reference", runs / "real.npz", *NETWORK]
    assert run("evaluate", "var", "--root", runs, *given, *words) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "var" / "evaluation").exists()


def test_classes_that_the_classifier_does_not_know_are_told_aloud(runs, choosing, capsys):
    words = ["--quick", 24, "--reference", runs / "real.npz", *NETWORK, *choosing]
    words += ["--classifier_classes=-,1,2", "--unmatched", "keep"]
    assert run("evaluate", "var", "--root", runs, *words) == 0
    said = capsys.readouterr().out
    assert "the classifier does not know, so all images are kept of: 0" in said
    assert "its outputs: -,1,2" in said
    assert "kept 16 of 64 images drawn (25.0%), and all 8 of other classes" in said


def test_samples_are_written_for_others(runs: Path):
    words = ["evaluate", "var", "--root", runs, "--quick", 24, "--reference", runs / "real.npz"]
    assert run(*words, *NETWORK, "--samples", runs / "samples.npz") == 0
    with np.load(runs / "samples.npz", allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (24, 4, 4, 3)


@pytest.mark.parametrize(
    ("run_name", "message"),
    [("alone", "holds no tokenizer"), ("tok", "not a VAR"), ("vax", "no model `vax`")],
)
def test_what_cannot_draw_is_refused_first(runs: Path, run_name: str, message: str, capsys):
    assert run("evaluate", run_name, "--root", runs) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named_with_this_verbs_own_flag(runs: Path, monkeypatch, capsys):
    monkeypatch.setenv("VARLIT_INCEPTION", "/nowhere/inception.pth")
    assert run("evaluate", "var", "--root", runs) == 2
    said = capsys.readouterr().err
    assert "give --reference FILE.npz" in said
    assert "no Inception weights at" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_images", "24"], "give quick 24"),
        (["--quick", "24", "--reference", "{runs}/large.npz"], "8 px; the samples have 4 px"),
        (["--quick", "24", "--reference", "{runs}/no.npz"], "no such file"),
        (["--quick", "24", "--reference", "data:val"], "token cache of this model is not known"),
        (["--network", "resnet"], "no feature network is called 'resnet'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(runs, words, message, capsys):
    given = [word.format(runs=runs) for word in words]
    assert run("evaluate", "var", "--root", runs, *NETWORK, *given) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "var" / "evaluation").exists()


def test_a_place_that_cannot_take_the_figures_is_refused_before_anything_is_drawn(runs, capsys):
    (runs / "file").touch()
    for out, message in ((runs, "got the folder"), (runs / "file" / "m.json", "can be written in")):
        assert run("evaluate", "var", "--root", runs, "--out", out) == 2
        assert message in capsys.readouterr().err
    words = ["--reference", runs / "real.npz", *NETWORK, "--device", "cuda:99"]
    assert run("evaluate", "var", "--root", runs, *words) == 2
    assert "drawing" not in capsys.readouterr().err


def test_a_sweep_measures_every_point_once_and_draws_two_curves(runs: Path, capsys, monkeypatch):
    words = ["var", "sweep", "var", "--root", runs, "--quick", 24, *NETWORK]
    words += ["--reference", runs / "real.npz", "--cfg_scale", "3,0", "--top_k", "4,0"]
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "a quick look, 24 images a point, seen by tinted, against real.npz" in said
    told = json.loads((runs / "var" / "sweep.json").read_text())
    points = [(p["top_k"], p["cfg_scale"]) for p in told["points"]]
    assert points == [(4, 0.0), (4, 3.0), (0, 0.0), (0, 3.0)]
    assert len({p["protocol"]["protocol_hash"] for p in told["points"]}) == 4
    assert len({p["quick_frechet_tinted"] for p in told["points"]}) == 4
    pictures = {path.name for path in (runs / "var").glob("*.png")}
    assert pictures == {"sweep-frechet-score.png", "sweep-precision-recall.png"}
    (runs / "var" / "sweep.json").unlink()

    def refuse(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr("varlit.generation.sampler.Sampler.draw", refuse)
    assert run(*words) == 0
    again = json.loads((runs / "var" / "sweep.json").read_text())
    for one, other in zip(told["points"], again["points"], strict=True):
        assert one["quick_frechet_tinted"] == other["quick_frechet_tinted"]


def test_a_sweep_says_that_its_images_are_chosen(runs: Path, choosing, capsys):
    words = ["var", "sweep", "var", "--root", runs, "--quick", 24, *NETWORK, *choosing]
    assert run(*words, "--reference", runs / "real.npz", "--cfg_scale", "0,3") == 0
    said = capsys.readouterr().out
    assert "var-re (rejection sampling, keep 0.25): a quick look" in said
    assert said.count("kept 24 of 96 images drawn") == 2
    told = json.loads((runs / "var" / "sweep.json").read_text())
    for point in told["points"]:
        assert point["protocol"]["rejection_cost"]["images_drawn"] == 96


def test_the_pictures_of_a_sweep_say_all_by_themselves(runs: Path, choosing, monkeypatch):
    told: list[tuple[dict, dict]] = []

    def watch(series, **words):
        told.append((series, words))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("varlit.viz.plots.lines", watch)
    words = ["var", "sweep", "var", "--root", runs, "--quick", 24, *NETWORK, *choosing]
    assert run(*words, "--reference", runs / "real.npz", "--cfg_scale", "3,0") == 0
    assert len(told) == 2
    for series, words in told:
        assert words["marks"] == {name: ["0", "3"] for name in series}
        assert words["title"].startswith("Quick look: ")
        for part in ("rejection sampling, keep 0.25", "against real.npz", "seen by tinted"):
            assert part in words["caption"]


def test_one_gpu_of_several_draws_and_this_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    evaluate._tell_other_gpus(torch.device("cpu"), "d16")
    assert capsys.readouterr().out == ""
    evaluate._tell_other_gpus(torch.device("cuda"), "d16")
    assert "make eval-fid NAME=d16 GPUS=8" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused_before_anything_is_drawn(runs: Path, capsys):
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 3)
    next(var.head.parameters()).data[0] = torch.nan
    save_var(var, runs / "tok", runs / "broken")
    words = ["evaluate", "broken", "--root", runs, "--quick", 24, *NETWORK]
    assert run(*words, "--reference", runs / "real.npz") == 2
    assert "weights of the VAR hold NaN or infinity, such as head" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused_before_a_network_is_opened(runs: Path, capsys):
    other = TokenizerConfig(32, (1, 1), 1, 0.0, 16, 4, (1, 2))
    torch.manual_seed(5)
    save_tokenizer(VQVAE(other), runs / "var" / "tokenizer")
    assert run("evaluate", "var", "--root", runs, "--network", "resnet") == 2
    assert "is not the tokenizer that this VAR was trained with" in capsys.readouterr().err


def test_a_sweep_over_no_numbers_is_refused(runs: Path, capsys):
    assert run("var", "sweep", "var", "--root", runs, "--cfg_scale", "1,x") == 2
    assert "numbers with commas" in capsys.readouterr().err
