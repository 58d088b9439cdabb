"""The chain of settings: base files, the run's own, recipes, flags last."""

from itertools import pairwise
from pathlib import Path

import pytest

from varlit.cli.config.recipes import (
    conf_folder,
    expand,
    find_recipe,
    find_trainer_group,
    option_value,
    read_yaml,
    run_name,
    split_configs,
)
from varlit.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configs_of(words: list[str]) -> list[str]:
    return [Path(value).name for word, value in pairwise(words) if word == "-c"]


def make_run(stage: str, name: str) -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    key = {"tokenizer": "tokenizer: {channels: 32}", "var": "var: {depth: 2}"}[stage]
    (folder / "fit.yaml").write_text(f"model:\n  {key}\ndata: {{class_path: X}}\n")
    return folder


def test_files_come_first_and_flags_last() -> None:
    words = expand("var", "fit", ["--model.var.depth", "3", "-c", "d16", "--config=digits"])
    assert configs_of(words) == ["base.yaml", "base.yaml", "d16.yaml", "digits.yaml"]
    assert words[-2:] == ["--model.var.depth", "3"]


def test_other_verbs_start_from_the_config_of_the_run() -> None:
    make_run("tokenizer", "tok")
    words = expand("tokenizer", "test", ["--name", "tok"], "ImageDataModule")
    assert configs_of(words) == ["base.yaml", "base.yaml", "fit.yaml"]
    assert "--data" not in words, "the run's data must be kept"
    assert words[words.index("--gpus") + 1] == "auto"
    assert option_value(words, "--trainer.num_nodes") == "1", "other nodes would be waited for"
    assert "--trainer.num_nodes" not in expand("tokenizer", "fit", ["--name", "tok"])


def test_a_missing_run_is_answered_with_the_runs_there_are() -> None:
    make_run("tokenizer", "photos")
    with pytest.raises(UserError, match=r"did you mean `--name photos`"):
        expand("tokenizer", "test", ["--name", "photo"])
    with pytest.raises(UserError, match=r"train one first: varlit var fit"):
        expand("var", "test", ["--name", "photo"])


def test_a_missing_run_is_answered_with_how_to_train_it() -> None:
    make_run("tokenizer", "photos")
    for name in ("tokenizer-imagenet256", "photo"):
        with pytest.raises(UserError, match=r"CONF=digits") as told:
            expand("tokenizer", "predict", ["--name", name])
        recipe = name.removeprefix("tokenizer-").replace("photo", "RECIPE")
        assert f"varlit tokenizer fit -c {recipe} --name {name}" in str(told.value)


def test_a_run_of_the_other_stage_is_refused() -> None:
    make_run("tokenizer", "tok")
    with pytest.raises(UserError, match="other stage"):
        expand("var", "test", ["--name", "tok"])


def test_the_first_choice_of_data_yields_to_files_and_flags() -> None:
    assert expand("tokenizer", "fit", [], "ImageDataModule")[:2] == ["--data", "ImageDataModule"]
    for args in (["-c", "digits"], ["--data", "Digits"], ["--data.class_path=Digits"]):
        assert "ImageDataModule" not in expand("tokenizer", "fit", args, "ImageDataModule")


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([], "var"),
        (["-c", "d16"], "var-d16"),
        (["-c", "d16", "--name", "mine"], "mine"),
        (["-c", "conf/var/d20.yaml"], "var-d20"),
    ],
)
def test_runs_are_named_by_stage_and_recipe(args: list[str], name: str) -> None:
    assert run_name("var", args) == name


def test_the_saved_config_of_a_run_names_that_run() -> None:
    folder = make_run("var", "mine")
    assert run_name("var", ["-c", str(folder / "fit.yaml")]) == "mine"


@pytest.mark.parametrize("name", ["runs/x", "", "../x"])
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match="--root"):
        run_name("var", ["--name", name])


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("{}")
    assert find_recipe("var", "d16") == conf_folder() / "var" / "d16.yaml"
    assert find_recipe("var", str(mine)) == mine
    with pytest.raises(UserError, match="did you mean `-c d16`"):
        find_recipe("var", "d17x6")


def test_trainer_groups_have_short_names() -> None:
    assert find_trainer_group("debug") == str(conf_folder() / "mode" / "debug.yaml")
    assert find_trainer_group("cpu") == str(conf_folder() / "hardware" / "cpu.yaml")
    assert find_trainer_group("other.yaml") == "other.yaml"


def test_the_last_value_of_an_option_counts() -> None:
    assert option_value(["--a", "1", "--a=2"], "--a") == "2"
    assert option_value(["--b", "1"], "--a") is None
    assert split_configs(["-c", "x", "--y", "1", "-c=z"]) == (["x", "z"], ["--y", "1"])


@pytest.mark.parametrize(
    ("content", "complaint"), [("a:\n b\n  c: 1", "line 3"), ("- 1", "list"), ("3", "int")]
)
def test_files_that_are_no_settings_are_named(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"bad\.yaml.*{complaint}"):
        read_yaml(path)
