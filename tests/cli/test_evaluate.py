"""`varlit evaluate` with a stand-in for Inception."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from varlit.cli import main as command_line
from varlit.metrics.fid import InceptionMetrics
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(32, (1, 1), 1, 0.0, 16, 4, (1, 2))


class Pixels(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.float().flatten(1) / 255
        return flat[:, :4], flat[:, -4:]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_tokenizer(VQVAE(TOKENIZER), tmp_path / "tok")
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 3)
    save_var(var, tmp_path / "tok", tmp_path / "var")
    save_var(var, None, tmp_path / "alone")
    return tmp_path


def run(*words: object) -> int:
    return command_line.main([str(word) for word in ("evaluate", *words)])


def test_a_folder_without_a_recipe_is_measured(runs: Path, monkeypatch, capsys):
    real = torch.rand(32, 3, 4, 4)

    def open_metrics(config, flag):
        made = InceptionMetrics(feature_network=Pixels, feature_name="pixels", num_splits=2)
        made.update_reference(real)
        return made

    monkeypatch.setattr("varlit.training.evaluation.open_metrics", open_metrics)
    words = ["var", "--root", runs, "--num_images", 24]
    assert run(*words, "--batch_size", 24) == 0
    assert "quick_frechet_pixels" in capsys.readouterr().out
    first = json.loads((runs / "var" / "metrics.json").read_text())
    assert first["protocol"]["sampling"]["cfg_scale"] == 1.5
    assert run(*words, "--batch_size", 5, "--out", runs / "deep" / "m.json") == 0
    again = json.loads((runs / "deep" / "m.json").read_text())
    assert again["quick_num_images"] == 24
    assert again["quick_frechet_pixels"] == pytest.approx(first["quick_frechet_pixels"], rel=1e-3)


@pytest.mark.parametrize(
    ("run_name", "message"),
    [("alone", "holds no tokenizer"), ("tok", "not a VAR"), ("vax", "no model `vax`")],
)
def test_what_cannot_draw_is_refused_first(runs: Path, run_name: str, message: str, capsys):
    assert run(run_name, "--root", runs) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named_with_this_verbs_own_flag(runs: Path, monkeypatch, capsys):
    monkeypatch.setenv("VARLIT_INCEPTION", "/nowhere/inception.pth")
    assert run("var", "--root", runs) == 2
    assert "give --reference FILE.npz" in capsys.readouterr().err


def test_a_place_that_cannot_take_the_figures_is_refused_before_anything_is_drawn(runs, capsys):
    (runs / "file").touch()
    for out, message in ((runs, "got the folder"), (runs / "file" / "m.json", "can be written in")):
        assert run("var", "--root", runs, "--out", out) == 2
        assert message in capsys.readouterr().err
    assert run("var", "--root", runs, "--device", "cuda:99") == 2
    assert "Inception" not in capsys.readouterr().err
