"""`varlit info RECIPE`: what a recipe or a run is and costs, in a second or two, without a GPU."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from varlit.cli.config.recipes import (
    BAD_SCALARS,
    STAGES,
    base_chain,
    conf_folder,
    displayed,
    read_yaml,
    recipe_names,
    stage_of,
)
from varlit.errors import UserError

USAGE = """\
varlit info RECIPE [--model.var.depth 20 ...]

  RECIPE   a file (conf/var/d30.yaml), a recipe's name (d30), or a run (its name, or runs/d30)

Prints parameters, tokens, operations, an estimate of memory, and steps.
"""


def main(argv: list[str]) -> int:
    """Print the cost card of every recipe that the words mean.

    Args:
        argv: What follows `varlit info`.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    target, overrides = argv[0], parse_overrides(argv[1:])
    for stage, path in find_settings(target):
        chain = [] if path.name == "fit.yaml" else base_chain(stage)
        settings: dict[str, Any] = {}
        for content in [*(read_yaml(p) for p in chain), read_yaml(path), overrides]:
            settings = merge(settings, content)
        print(displayed(path))
        print(cost_card(stage, settings))
    return 0


def cost_card(stage: str, settings: dict[str, Any]) -> str:
    """Return the cost card of resolved settings."""
    from varlit.cli.pricing.costs import tokenizer_card, var_card

    try:
        return tokenizer_card(settings) if stage == "tokenizer" else var_card(settings)
    except UserError:
        raise
    except (*BAD_SCALARS, ArithmeticError, RuntimeError) as error:
        # Settings come here without the parser's types, which would take seconds to import.
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"these settings make no {stage} ({type(error).__name__}: {reason}); which one is "
            f"wrong says: varlit {stage} fit ... --dry_run"
        ) from error


def find_settings(target: str) -> list[tuple[str, Path]]:
    """Find the stages and files that a word means.

    Raises:
        UserError: If it means nothing; the nearest recipe is named.
    """
    for path in (Path(target), Path(target) / "fit.yaml", Path("runs") / target / "fit.yaml"):
        if path.is_file():
            stage = stage_of(read_yaml(path)) or path.resolve().parent.name
            if stage not in STAGES:
                raise UserError(
                    f"{path} is a recipe of no stage: it sets no model.tokenizer or "
                    "model.var, and lies in no folder called tokenizer or var"
                )
            return [(stage, path)]
    found = [(stage, conf_folder() / stage / f"{target}.yaml") for stage in STAGES]
    found = [(stage, path) for stage, path in found if path.is_file() and path.stem != "base"]
    if not found:
        known = sorted({name for stage in STAGES for name in recipe_names(stage)})
        near = difflib.get_close_matches(target, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"recipes: {', '.join(known)}"
        raise UserError(f"no file, recipe or run is called `{target}`; {hint}")
    return found


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Turn `--model.var.depth 20` into nested settings.

    Raises:
        UserError: If the words are not pairs of a dotted flag and a value.
    """
    settings: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        value = value if equals else next(rest, "")
        if not flag.startswith("--") or "." not in flag or not value:
            raise UserError(f"expected pairs such as --model.var.depth 20; got `{word}`")
        try:
            nested: Any = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError, *BAD_SCALARS) as error:
            raise UserError(f"{flag}: `{value[:80]}` is no value in YAML; quote it") from error
        for key in reversed(flag.removeprefix("--").split(".")):
            nested = {key: nested}
        settings = merge(settings, nested)
    return settings


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings; what is not a mapping replaces, as the parser does it."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
