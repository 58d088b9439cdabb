"""Where settings come from: the base chain, the recipe of `-c`, the saved config of a run.

Everything here works on the words of the command line, before any parser and without torch.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml

from varlit.cli.config.converted import model_config, words_instead_of_a_recipe
from varlit.errors import UserError

STAGES = ("tokenizer", "var")
MAX_VALUES = 100_000
"""More values are no recipe: the largest of conf/ has a few dozen."""


def conf_folder() -> Path:
    """Return the `conf/` of the checkout, or the one packed into an installed varlit."""
    here = Path(__file__).resolve()
    checkout = here.parents[4] / "conf"
    return checkout if (checkout / "base.yaml").is_file() else here.parents[2] / "conf"


def base_chain(stage: str) -> list[Path]:
    """Return the files under every recipe of a stage, weakest first."""
    return [conf_folder() / "base.yaml", conf_folder() / stage / "base.yaml"]


def find_recipe(stage: str, given: str) -> Path:
    """Find what `-c` means: a file, or the name of a recipe of the stage.

    Raises:
        UserError: If there is neither; the nearest recipe is named.
    """
    path = Path(given).expanduser()
    if _is_file(path):
        return path
    named = conf_folder() / stage / f"{given.removesuffix('.yaml')}.yaml"
    if _is_file(named):
        return named
    known = recipe_names(stage)
    near = difflib.get_close_matches(path.stem, known, 1)
    hint = f"did you mean `-c {near[0]}`?" if near else f"recipes: {', '.join(known)}"
    raise UserError(f"no file and no {stage} recipe is called `{given[:80]}`; {hint}")


def recipe_names(stage: str) -> list[str]:
    """Return the names that `-c` knows for a stage."""
    return sorted(p.stem for p in (conf_folder() / stage).glob("*.yaml") if p.stem != "base")


def find_trainer_group(given: str) -> str:
    """Let `--trainer debug` mean conf/mode/debug.yaml; anything else is left as it is."""
    for folder in ("hardware", "mode"):
        named = conf_folder() / folder / f"{given}.yaml"
        if _is_file(named) and not _is_file(Path(given)):
            return str(named)
    return given


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or no name of a file at all
        return False


def displayed(path: Path) -> str:
    """Return a path as people would type it: relative where it lies below this folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def option_value(args: list[str], *names: str) -> str | None:
    """Return the last value given to an option, written `--x value` or `--x=value`."""
    value = None
    for i, arg in enumerate(args):
        flag, equals, rest = arg.partition("=")
        if flag in names:
            value = rest if equals else (args[i + 1] if i + 1 < len(args) else None)
    return value


def split_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Separate the values of `-c` from all other words, so that files come first and flags last."""
    configs, others = [], []
    words = iter(args)
    for word in words:
        flag, equals, rest = word.partition("=")
        if flag in {"-c", "--config"}:
            value = rest if equals else next(words, None)
            if value is None:
                raise UserError(f"`{word}` wants a file or the name of a recipe after it")
            configs.append(value)
        else:
            others.append(word)
    return configs, others


def run_name(stage: str, args: list[str]) -> str:
    """Return the run's name: `--name`, else `<stage>-<recipe>`.

    Raises:
        UserError: If the name is a path.
    """
    name = option_value(args, "--name")
    if name is None:
        configs, _ = split_configs(args)
        recipe = Path(configs[-1]) if configs else None
        if recipe is not None and recipe.name == "fit.yaml":
            return recipe.resolve().parent.name
        return f"{stage}-{recipe.stem}" if recipe else stage
    if not name or Path(name).name != name:
        raise UserError(f"--name wants a plain name, got `{name}`; the folder goes to --root")
    return name


def saved_fit(stage: str, run_dir: Path) -> Path:
    """Return the config that a run was trained with.

    Raises:
        UserError: If there is no such run of this stage; those that exist are named.
    """
    path = run_dir / "fit.yaml"
    if path.is_file() and stage_of(read_yaml(path)) == stage:
        return path
    what = "a run of the other stage" if path.is_file() else "no such run"
    known = [
        p.parent.name
        for p in sorted(run_dir.parent.glob("*/fit.yaml"))
        if stage_of(read_yaml(p)) == stage
    ]
    near = difflib.get_close_matches(run_dir.name, known, 1)
    hint = f"did you mean `--name {near[0]}`?" if near else f"--name one of: {', '.join(known)}."
    recipe = run_dir.name.removeprefix(f"{stage}-")
    recipe = recipe if recipe in recipe_names(stage) else "RECIPE"
    train = (
        f"varlit {stage} fit -c {recipe} --name {run_dir.name} "
        "(the recipe that needs no download: -c digits, CONF=digits with make)"
    )
    hint = f"{hint} Or train it: {train}" if known else f"train one first: {train}"
    raise UserError(f"{path.parent}: {what}; {hint}")


BAD_SCALARS = (ValueError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML raises besides its own errors: on 2026-99-99, on `!!int x`, on 5,000 digits."""


def stage_of(config: dict[str, Any]) -> str | None:
    """Tell the stage of a resolved config by what its model holds."""
    model = config.get("model")
    if not isinstance(model, dict):
        return None
    return next((s for s in reversed(STAGES) if isinstance(model.get(s), dict)), None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: If the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; `-c` takes YAML files") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {getattr(error, 'problem', 'not YAML')}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep for a recipe; `-c` takes YAML files") from None
    except BAD_SCALARS as error:
        raise UserError(f"{path} holds a value that is none ({error}); mend it") from None
    if content is None:
        return {}
    if _unfolded(content, {}) > MAX_VALUES:
        raise UserError(f"{path} unfolds to over {MAX_VALUES:,} values; use fewer * in it")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` pairs; got a {type(content).__name__}")
    return content


def _unfolded(node: Any, counted: dict[int, int]) -> int:
    """Count the values of a document as if each alias were written out.

    Ten lines of aliases to lists of aliases make ten billion; who copies them runs out of memory.
    """
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in counted:
        counted[id(node)] = MAX_VALUES + 1  # what holds itself has no end
        inside = node.values() if isinstance(node, dict) else node
        counted[id(node)] = 1 + sum(_unfolded(part, counted) for part in inside)
    return counted[id(node)]


def expand(stage: str, subcommand: str, args: list[str], data: str = "") -> list[str]:
    """Turn what the user typed into what the parser reads, weakest first.

    The base chain, for verbs other than fit the config that the run was trained with (or what a
    converted model says of itself), the user's recipes, then all flags in their order.

    Args:
        stage: `tokenizer` or `var`.
        subcommand: `fit`, `validate`, `test` or `predict`.
        args: The words after the subcommand.
        data: Class of the data where neither a file nor a flag names one.
    """
    name, root = run_name(stage, args), option_value(args, "--root") or "runs"
    configs, flags = split_configs(args)
    chain, place = base_chain(stage), ["--name", name]
    if subcommand != "fit":
        run_dir = Path(root) / name
        bare = model_config(run_dir)
        if bare is None:
            chain.append(saved_fit(stage, run_dir))
        # A run may be measured elsewhere than where, and on other devices than it was trained.
        place += ["--root", root, "--gpus", "auto", "--ckpt_path", "last"]
        for setting in ("accelerator", "devices", "strategy"):
            place += [f"--trainer.{setting}", "auto"]
        place += ["--trainer.num_nodes", "1"]
        if bare is not None:
            place += words_instead_of_a_recipe(stage, bare, run_dir)
    chain += [find_recipe(stage, given) for given in configs]
    for path in chain:
        read_yaml(path)  # what cannot be read is told before the parser meets it
    words = [word for path in chain for word in ("-c", str(path))]
    if data and not _names_data(chain, flags):
        words = ["--data", data, *words]
    return [*words, *place, *_with_trainer_groups(flags)]


def _names_data(chain: list[Path], flags: list[str]) -> bool:
    if option_value(flags, "--data", "--data.class_path") is not None:
        return True
    found = [read_yaml(path).get("data") for path in chain]
    return any(isinstance(d, str) or (isinstance(d, dict) and "class_path" in d) for d in found)


def _with_trainer_groups(flags: list[str]) -> list[str]:
    """Expand the short names of hardware and mode files after `--trainer`."""
    expanded = list(flags)
    for i, flag in enumerate(flags):
        if flag == "--trainer" and i + 1 < len(flags):
            expanded[i + 1] = find_trainer_group(flags[i + 1])
        elif flag.startswith("--trainer="):
            expanded[i] = "--trainer=" + find_trainer_group(flag.removeprefix("--trainer="))
    return expanded
