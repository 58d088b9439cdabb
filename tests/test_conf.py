"""Every recipe parses, says what it is, and is a short delta."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from varlit.cli import main as command_line
from varlit.cli.recipes import conf_folder, find_recipe, recipe_names, stage_of

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
RECIPES = [(stage, name) for stage in ("tokenizer", "var") for name in recipe_names(stage)]
# What a link sets: in a file it would be ignored without a word.
LINK_TARGETS = ("model.num_classes", "model.tokenizer.", "model.image_size")
MAX_LINES = 40

each_file = pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(CONF)) for p in FILES])


def flat_keys(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix.removesuffix(".")]
    return [key for name, value in tree.items() for key in flat_keys(value, f"{prefix}{name}.")]


def test_the_conf_in_use_is_that_of_the_checkout() -> None:
    assert conf_folder() == CONF


def test_the_named_recipes_are_there() -> None:
    assert set(recipe_names("tokenizer")) >= {"imagenet256", "folder", "digits"}
    assert set(recipe_names("var")) >= {"d16", "d20", "d24", "d30", "digits"}
    assert {p.stem for p in (CONF / "hardware").iterdir()} >= {"cpu", "gpu1", "ddp"}
    assert {p.stem for p in (CONF / "mode").iterdir()} >= {"debug", "overfit", "profile"}


@each_file
def test_the_header_says_what_to_expect_what_it_costs_and_how_to_run_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines[: lines.index(next(filter(_is_code, lines)))])
    assert lines[0].startswith("# ")
    for word in ("Expect:", "Cost:", "Run:"):
        assert word in header, f"{path.name}: `{word}` is missing in the header"
    if re.search(r"(FID|IS|PSNR|accuracy)\s+\d", header):
        assert re.search(r"\((paper|third party|ours)", header) or "third" in header
    assert len(lines) <= MAX_LINES


def _is_code(line: str) -> bool:
    return bool(line) and not line.startswith("#")


@each_file
def test_only_environment_variables_are_interpolated(path: Path) -> None:
    for found in re.findall(r"\$\{[^}]*\}?", path.read_text()):
        assert found.startswith("${oc.env:"), f"{path.name}: {found} goes stale under flags"


@each_file
def test_no_file_sets_a_link_target_or_the_list_of_callbacks(path: Path) -> None:
    content = yaml.safe_load(path.read_text()) or {}
    keys = flat_keys(content)
    is_var = path.parent.name == "var"
    targets = [t for t in LINK_TARGETS if is_var or t != "model.tokenizer."]
    for key in keys:
        assert not any(f"{key}.".startswith(target) for target in targets), key
        assert key not in {"trainer.callbacks", "callbacks", "name", "root"}


@pytest.mark.parametrize(("stage", "name"), RECIPES, ids=[f"{s}/{n}" for s, n in RECIPES])
def test_every_recipe_parses(stage: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = command_line.main([stage, "fit", "-c", name, "--print_config"])
    out = capsys.readouterr()
    assert code == 0, out.err
    config = yaml.safe_load(out.out)
    assert stage_of(config) == stage
    assert config["name"] == f"{stage}-{name}"
    assert config["ckpt_path"] == "last"
    recipe = yaml.safe_load(find_recipe(stage, name).read_text())
    assert config["trainer"]["max_epochs"] == recipe["trainer"]["max_epochs"]


@pytest.mark.parametrize("folder", ["hardware", "mode"])
def test_every_hardware_and_mode_parses(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((CONF / folder).glob("*.yaml")):
        words = ["var", "fit", "-c", "digits", "--trainer", path.stem, "--print_config"]
        assert command_line.main(words) == 0, path.stem
        config = yaml.safe_load(capsys.readouterr().out)
        for key, value in yaml.safe_load(path.read_text()).items():
            assert str(config["trainer"][key]) == str(value)
        assert config["trainer"]["use_distributed_sampler"] is False, "the rest must be kept"


def test_official_recipes_follow_the_published_table(capsys: pytest.CaptureFixture[str]) -> None:
    # official VAR, README: batch, epochs, lr per 256, alng, final lr ratio.
    table = {
        "d16": (768, 200, 1e-4, 1e-3, 0.1),
        "d20": (768, 250, 1e-4, 1e-3, 0.1),
        "d24": (768, 350, 8e-5, 1e-4, 0.01),
        "d30": (1024, 350, 8e-5, 1e-5, 0.01),
    }
    for name, expected in table.items():
        assert command_line.main(["var", "fit", "-c", name, "--print_config"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        optim, shape = config["model"]["optim"], config["model"]["var"]
        found = (config["data"]["batch_size"], config["trainer"]["max_epochs"])
        found += (optim["lr"], shape["gamma_init"], optim["final_lr"])
        assert found == expected
        assert optim["betas"] == [0.9, 0.95]
        assert shape["depth"] == int(name[1:])
