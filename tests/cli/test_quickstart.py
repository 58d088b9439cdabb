"""The demo at toy length: every file, every key, honest time, and starting again."""

import json
from pathlib import Path

import pytest
from PIL import Image

from varlit.cli import main as command_line
from varlit.cli.quickstart import Clock
from varlit.errors import UserError

KEYS = {
    "wall_seconds",
    "judge_accuracy",
    "judge_heldout_accuracy",
    "precision",
    "recall",
    "frechet",
    "frechet_yardstick",
    "reconstruction_accuracy",
    "seed",
}


@pytest.mark.slow
def test_the_demo_measures_draws_and_says_what_to_type_next(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["quickstart", "--out", str(tmp_path / "demo"), "--seed", "3", "--num_samples", "40"]
    words += ["--tokenizer_steps", "2", "--var_steps", "2"]
    assert command_line.main(words) == 0
    report = json.loads((tmp_path / "demo/report.json").read_text())
    assert set(report) >= KEYS
    assert report["seed"] == 3
    assert 0 < report["wall_seconds"] < 600
    # Two steps teach nothing: figures as good as a trained model's would be made up.
    assert report["judge_accuracy"] < 0.6
    assert report["frechet"] > report["frechet_yardstick"]
    assert report["judge_heldout_accuracy"] == pytest.approx(0.953, abs=0.005)
    with Image.open(tmp_path / "demo/demo.png") as picture:
        assert picture.width <= 1200
        assert picture.height > 800
    out = capsys.readouterr().out
    assert "varlit sample" in out.splitlines()[-1]


def test_a_broken_off_demo_goes_on_and_keeps_its_time(tmp_path: Path):
    first = Clock(tmp_path, {"seed": 0})
    first.before_s = 100.0
    first.save()
    again = Clock(tmp_path, {"seed": 0})
    assert again.seconds() >= 100
    assert again.times_resumed == 1


def test_runs_that_no_demo_made_are_left_alone(tmp_path: Path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match="no quickstart made it; give another --out"):
        Clock(tmp_path, {"seed": 0})
    assert (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("settings", [{"seed": 1}, {"seed": 0}])
def test_a_finished_demo_or_another_seed_starts_from_nothing(tmp_path: Path, settings: dict):
    Clock(tmp_path, {"seed": 0}).save()
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "var/checkpoints").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    clock = Clock(tmp_path, settings)
    assert clock.times_resumed == 0
    assert clock.seconds() < 50
    assert not (tmp_path / "var").exists()
    assert (tmp_path / "mine").exists()
