"""The argument parser: Lightning's, with errors of two lines and the nearest known key.

jsonargparse would print the usage of several hundred options before each message.
"""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import get_loader
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from varlit.cli.config.recipes import BAD_SCALARS
from varlit.cli.config.trust import denied_import, told_interpolation
from varlit.errors import UserError

# How jsonargparse names the key that it does not know, in files and in flags.
UNKNOWN_KEY = re.compile(
    r"(?:does not accept option '|[Uu]nrecognized arguments: --|Key '|[Oo]ption ')([\w.]+)"
)
# The same for the settings of a class that the user may choose, such as `data`.
CLASS_SETTING = re.compile(r"given class_path '(?:\w+\.)*(\w+)':\s*Option '(\w+)' is not accepted")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\w+)")
REWORDINGS = (
    (
        re.compile(r"Does not validate against any of the Union subtypes.*?class_path '(.*)"),
        r"'\1",
    ),
    (re.compile(r"': Option '(\w+)' is not accepted.*"), r"' has no setting '\1'"),
    (re.compile(r" - Expected a <class 'NoneType'>.*"), ""),
    (
        re.compile(r"(?:- )?Expected a path but .*Expected a dot import path string: (\w+).*"),
        r"no class '\1'",
    ),
    (re.compile(r"Expected a <class 'tuple'>\. Got value: (.*)"), r"expected [1,2,...], got \1"),
    (re.compile(r"[Uu]nrecognized arguments: (--\S+).*"), r"there is no flag \1"),
    (re.compile(r"Subcommand '\w+' does not accept option '"), "there is no key '"),
    (re.compile(r"Group '[\w.]+' does not accept option '"), "there is no key '"),
    (re.compile(r'Parser key "([\w.]+)": '), r"\1: "),
    (re.compile(r"<class '(?:\w+\.)*(\w+)'>"), r"\1"),
    (re.compile(r"Expected an? (\w+)\. Got value: (.*)"), r"expected \1, got \2"),
    (re.compile(r"(?:\w+\.)+([A-Z]\w+)"), r"\1"),  # class names without their modules
)
LIKE_ENOUGH = 0.7


class Parser(LightningArgumentParser):
    """A parser whose errors are one message, one hint, exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave; raise instead when a caller tries alternatives."""
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        sys.stdout.flush()
        if denied := denied_import(message):
            sys.stderr.write(f"varlit: {denied}\n")
            sys.exit(2)
        sys.stderr.write(f"varlit: {shorten(message)}\n")
        if hint := self._hint(parser, message):
            sys.stderr.write(f"        {hint}\n")
        sys.exit(2)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; a `${...}` that leads nowhere is the user's mistake.

        Raises:
            UserError: In that case.
        """
        try:
            return super().parse_args(*args, **kwargs)
        except OmegaConfBaseException as error:
            raise told_interpolation(error) from None

    def _hint(self, parser: argparse.ArgumentParser, message: str) -> str:
        if setting := CLASS_SETTING.search(message):
            known = settings_of(setting.group(1))
            near = nearest_key(setting.group(2), known)
            return f"did you mean `data.{near}`?" if near else f"it knows {', '.join(known)}"
        if unknown := UNKNOWN_CLASS.search(message):
            names = [kind.__name__ for kind in data_modules()]
            closest = difflib.get_close_matches(unknown.group(1), names, 1)
            return f"did you mean `{closest[0]}`?" if closest else f"known: {', '.join(names)}"
        unknown = UNKNOWN_KEY.search(message)
        if not unknown:
            return ""
        near = nearest_key(unknown.group(1), known_keys(parser))
        return f"did you mean `{near}`?" if near else f"all keys: {parser.prog} --help"


def require_values(words: Iterable[str]) -> None:
    """Check that every word that was typed can be read as a value, be it as mere text.

    Raises:
        UserError: If PyYAML fails over it, as it does on `!!int x`; the parser would do the same.
    """
    read = get_loader("yaml")
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        try:
            read(value)
        except yaml.YAMLError:
            pass  # text, then
        except BAD_SCALARS as error:
            raise UserError(f"`{word[:80]}` is no value in YAML; quote it") from error


def known_keys(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield every dotted key of a parser and of its subcommands."""
    for action in parser._actions:
        choices = action.choices
        if isinstance(action, argparse._SubParsersAction) and isinstance(choices, dict):
            for sub in choices.values():
                yield from known_keys(sub)
        elif action.dest != "help":
            yield action.dest


def data_modules() -> list[type]:
    """Return every data module of varlit that is imported, without their common bases."""
    found: list[type] = [LightningDataModule]
    for kind in found:
        found += kind.__subclasses__()
    bases = "varlit.data.module"
    return [k for k in found if k.__module__.startswith("varlit.") and k.__module__ != bases]


def settings_of(class_name: str) -> list[str]:
    """Return the settings of a data module by its name, nothing if there is no such class."""
    kinds = [kind for kind in data_modules() if kind.__name__ == class_name]
    return [name for kind in kinds for name in inspect.signature(kind).parameters]


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Find the key that the user may have meant, or return an empty string.

    The last part decides, so that `model.depth` means `model.var.depth`; among equals the rest.
    """
    keys = sorted(set(known))
    leaves = [k for k in keys if not any(other.startswith(f"{k}.") for other in keys)]
    tail = key.rsplit(".", 1)[-1]

    def likeness(candidate: str) -> tuple[float, float]:
        own = difflib.SequenceMatcher(None, tail, candidate.rsplit(".", 1)[-1]).ratio()
        return own, difflib.SequenceMatcher(None, key, candidate).ratio()

    best = max(leaves, key=likeness, default="")
    return best if best and likeness(best)[0] >= LIKE_ENOUGH else ""


def prefer_integers(parser: argparse.ArgumentParser) -> None:
    """Read `2` as an integer wherever both an integer and a share are allowed.

    `Optional[Union[int, float]]` and its mirror image are equal to typing's cache, so which of
    them Lightning's annotations end up as depends on what was imported before. Float first would
    turn `limit_val_batches: 1`, one batch, into 1.0, all of them.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        kinds = set(get_args(hint))
        if {int, float} <= kinds <= {int, float, type(None)}:
            preferred = int | float | None if type(None) in kinds else int | float
            action._typehint = preferred  # type: ignore[attr-defined]


def shorten(message: str, limit: int = 300) -> str:
    """Cut a message of jsonargparse to what a person reads."""
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    for pattern, words in REWORDINGS:
        text = pattern.sub(words, text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
