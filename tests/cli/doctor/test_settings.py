"""`varlit doctor -c`: settings are read by the parser of `fit`, and refused in its words."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from varlit.cli import main as command_line
from varlit.cli.doctor import main as doctor
from varlit.cli.doctor.settings import find, flags_of, resolve
from varlit.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("check_versions", "check_pair", "check_gpus", "check_weights"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))


def test_a_recipe_is_named_in_four_ways(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {var: {depth: 2}}\n")
    assert find("d16")[0] == "var"
    assert find("tokenizer/digits")[0] == "tokenizer"
    found = resolve("mine.yaml", ["--trainer.max_epochs", "3", "--data.tokens", "x"])
    assert (found.stage, found.settings["trainer"]["max_epochs"]) == ("var", 3)
    assert found.settings["data"]["tokens"] == "x"
    assert found.settings["data"]["batch_size"] == 768, "what data holds besides stays"
    with pytest.raises(UserError, match="tokenizer/digits or var/digits"):
        find("digits")
    with pytest.raises(UserError, match="did you mean `d16`"):
        find("d61")


def test_a_run_is_a_recipe_with_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "runs/small").mkdir(parents=True)
    (tmp_path / "runs/small/fit.yaml").write_text("model: {var: {depth: 2}}\ntrainer: {}\n")
    found = resolve("small", [])
    assert (found.stage, found.settings["model"]["var"]["depth"]) == ("var", 2)
    assert found.run_dir == Path("runs/small"), "where `fit -c runs/small/fit.yaml` would go on"
    assert resolve("d16", []).run_dir == Path("runs/var-d16")


def test_the_flags_of_the_doctor_are_those_of_fit() -> None:
    plain = Namespace(data=None, name="", root=Path("runs"), gpus="auto")
    assert flags_of(plain, "var") == []
    given = Namespace(data="x", name="n", root=Path("r"), gpus="0")
    assert flags_of(given, "var") == ["--data.tokens=x", "--name=n", "--root=r", "--gpus=0"]
    assert flags_of(given, "tokenizer")[0] == "--data.root=x"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tokenizer/digits --data.num_workers abc", "num_workers: expected int, got abc"),
        ("tokenizer/digits --checkpoint.keep_last many", "expected int, got many"),
        ("tokenizer/digits --trainer.max_epochs abc", "trainer.max_epochs"),
        ("d16 --trainer.max_stepz 5 --data.nummworkers 3", "did you mean `trainer.max_steps`"),
        ("d16 --data.nummworkers 3", "did you mean `data.num_workers`"),
        ("d16 --model.var.dept 3", "did you mean `model.var.depth`"),
        ("d16 --gpu 3", "did you mean `gpus`"),
        ("d16 --data.batch_size 0", "batch_size is 0: expected at least 1"),
        ("tokenizer/digits --data.batch_size 0", "batch_size is 0: expected at least 1"),
        ("tokenizer/folder --data.root x --data.num_workers -1", "num_workers is -1"),
        ("tokenizer/folder --data.root x --data.image_size 0", "image_size is 0"),
        ("d16 --checkpoint.keep_last 0", "got checkpoint.keep_last 0, expected 1 or more"),
        ("d16 --model.optim.lr -1", "lr must be positive"),
        ("d16 --trainer.gradient_clip_val 1", "set --model.optim.grad_clip"),
        ("tokenizer/digits --data.help", "type it after varlit tokenizer fit"),
        ("d16 --name a/b", "--name wants a plain name"),
        ("var/bad.yaml", "model: "),
    ],
)
@pytest.mark.slow
def test_what_fit_refuses_is_to_mend(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var/bad.yaml").write_text("data: 5\ntrainer: [1]\nmodel: x\n")
    assert command_line.main(["doctor", "-c", *line.split()]) == 1
    told, wrong = capsys.readouterr()
    first, count = told.splitlines()
    assert first.startswith("fix   recipe       ")
    assert said in first
    assert (count, wrong) == ("1 to mend, marked `fix`.", "")
    assert [path.name for path in tmp_path.iterdir()] == ["var"], "nothing was written"


ODD = ("", "-1", "1e9", ".inf", "[", "9" * 20, "9" * 5000, "${x}", "a" * 3000, "\0")
KEYS = ("data.batch_size", "trainer.max_steps", "checkpoint.keep_last", "checkpoint.dirpath")
MORE_KEYS = ("trainer.accumulate_grad_batches", "trainer", "root", "gpus", "name")


@pytest.mark.slow
@pytest.mark.parametrize("key", [*KEYS, *MORE_KEYS])
def test_odd_values_are_told_without_a_traceback(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ODD:
        # Anything but words and an exit code leaves `main` as an exception.
        code = command_line.main(["doctor", "-c", "d16", f"--{key}", value])
        told = capsys.readouterr()
        assert code in (1, 2), "there is no token cache"
        assert "Traceback" not in told.err
        assert "fix" in told.out or told.err.startswith("varlit: "), value[:80]


def test_neither_data_nor_weights_nor_networks_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(torch.nn.Linear, "__init__", refuse)
    monkeypatch.setattr(torch.nn.Conv2d, "__init__", refuse)
    assert resolve("d30", ["--data.tokens", "nowhere"]).stage == "var"
    found = resolve("imagenet256", ["--data.root", "nowhere"])
    assert found.settings["data"]["init_args"]["root"] == "nowhere"


def test_a_recipe_of_no_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("data: 5\ntrainer: [1]\nmodel: x\n")
    assert command_line.main(["doctor", "-c", "bad.yaml"]) == 2
    assert "bad.yaml is a recipe of no stage" in capsys.readouterr().err
