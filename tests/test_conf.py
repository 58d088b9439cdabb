"""Every recipe parses, says what it is, and is a short delta."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from varlit.cli import main as command_line
from varlit.cli.config.recipes import conf_folder, find_recipe, recipe_names, stage_of

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
RECIPES = [(stage, name) for stage in ("tokenizer", "var") for name in recipe_names(stage)]
# What a link sets: in a file it would be ignored without a word.
LINK_TARGETS = ("model.num_classes", "model.tokenizer.", "model.image_size")
MAX_LINES = {"base.yaml": 60}  # a recipe is a delta, a base lists what it is a delta of
MOST_LINES = 40
TOKENIZERS = {"imagenet256", "imagenet512", "vqgan", "llamagen_patch", "folder", "digits"}
TOKENIZERS |= {"cifar10", "photos64", "vqgan64"}

each_file = pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(CONF)) for p in FILES])


def flat_keys(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix.removesuffix(".")]
    return [key for name, value in tree.items() for key in flat_keys(value, f"{prefix}{name}.")]


def test_the_conf_in_use_is_that_of_the_checkout() -> None:
    assert conf_folder() == CONF


def test_the_named_recipes_are_there() -> None:
    assert set(recipe_names("tokenizer")) >= TOKENIZERS
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
    assert len(lines) <= MAX_LINES.get(path.name, MOST_LINES)


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


def resolved(capsys: pytest.CaptureFixture[str], stage: str, name: str) -> dict[str, Any]:
    assert command_line.main([stage, "fit", "-c", name, "--print_config"]) == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def test_the_tokenizers_recipe_is_that_of_vaex(capsys: pytest.CaptureFixture[str]) -> None:
    # vaex: utils/arg_util.py, train.py, models/; VAR: models/quant.py. What is ours is not here.
    config = resolved(capsys, "tokenizer", "imagenet256")
    model, data = config["model"], config["data"]["init_args"]
    expected = {
        "tokenizer": {"channels": 160, "dropout": 0.05, "codebook_size": 4096, "codebook_dim": 32},
        "loss": {"l1_weight": 0.2, "l2_weight": 1, "perceptual_weight": 1, "disc_weight": 0.4}
        | {"commitment_weight": 0.25, "adaptive_min": 0.015, "disc_start": 0.2, "disc_warmup": 0.02}
        | {"disc_blur_fade": 0.04, "consistency_weight": 8, "disc_loss": "hinge"},
        "discriminator": {"kind": "dino"},
        "codebook": {"update": "gradient", "restart_below": 0},
        "optim": {"betas": [0.5, 0.9], "weight_decay": 0.005, "disc_weight_decay": 0.0005}
        | {"final_lr": 0.3, "warmup": 0.01, "warmup_start": 0.005, "grad_clip": 10}
        | {"ema_decay": 0.9999, "schedule": "cosine", "disc_schedule": "own"},
    }
    for group, values in expected.items():
        assert {key: model[group][key] for key in values} == values
    assert model["optim"]["lr"] * data["batch_size"] / 256 == pytest.approx(3e-4)
    assert (data["resize_ratio"], data["horizontal_flip"]) == (1.125, False)


def test_every_setting_of_the_tokenizers_base_names_its_source() -> None:
    section = ""
    for line in (CONF / "tokenizer" / "base.yaml").read_text().splitlines():
        key, _, comment = line.partition("#")
        indent = len(key) - len(key.lstrip())
        if line.startswith("#") or not key.strip():
            continue
        section = comment if indent == 2 else section
        value = key.partition(":")[2].strip()
        if indent == 4 and value:
            assert comment.strip() or "official" in section, line


@pytest.mark.parametrize(("name", "twin"), [("photos64", "vqgan64"), ("digits", "digits-raster")])
def test_twins_differ_in_their_scales_alone(
    name: str, twin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (resolved(capsys, "tokenizer", n) for n in (name, twin))
    shapes = [config["model"]["tokenizer"] for config in (ours, theirs)]
    scales, of_twin = (shape.pop("scales") for shape in shapes)
    assert [scales[-1]] == of_twin
    assert {ours.pop("name"), theirs.pop("name")} == {f"tokenizer-{name}", f"tokenizer-{twin}"}
    assert ours == theirs
