"""What a config file may ask for: settings and known classes, no code of its author's.

Recipes are passed around, and the config of a run comes with its folder. A file may choose among
classes; what runs other code, or a command, has to be typed.
"""

import contextlib
import inspect
import pydoc
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import yaml
from jsonargparse import get_loader

from varlit.errors import UserError

ALLOW_IMPORT = "--allow-import"
PLACES = (
    *("varlit.data", "varlit.callbacks", "varlit.training"),
    *("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.profilers"),
    *("lightning.pytorch.strategies", "lightning.pytorch.plugins", "lightning.fabric.plugins"),
    *("lightning.pytorch.accelerators", "torch.nn", "torch.optim", "torch.distributed.fsdp"),
    "torchvision.transforms",
)
"""Whose classes a config may name; not all of torch, where hundreds of functions run what they are
given. jsonargparse asks before it imports, and once more where the object found is defined."""
FUNCTIONS = ("torch.nn.functional", "torch.nn.init")
"""Whose functions may stand where a function is wanted. Others of `PLACES` may not."""
CODE_RUNNERS = ("lightning.pytorch.strategies.launchers", "torch.nn.parallel", "torch.nn.utils")
"""Parts of `PLACES` that start processes or have no business in a config."""
COMMAND = "pipe:"
ENVIRONMENT = "oc.env"
TRUST_SETTING = "trust_torchscript"
CLASS_PATH = "class_path"

_PACKAGE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_granted: list[str] = []


def split_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--allow-import PACKAGE` out of the words; a key of the parser could stand in a file.

    Returns:
        The other words, and the packages.

    Raises:
        UserError: If what follows is no package.
    """
    others, packages = [], []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") != ALLOW_IMPORT:
            others.append(word)
            continue
        package = value if equals else next(rest, "")
        if not _PACKAGE.fullmatch(package):
            raise UserError(f"{ALLOW_IMPORT} wants a package such as my.package; got `{package}`")
        packages.append(package)
    return others, packages


def restrict_parsing(packages: Sequence[str]) -> None:
    """Let the parser import from `PLACES` and the packages given, and nowhere else.

    Also off: classes where any value is accepted, which no type would hold back; config files
    behind addresses, which Lightning turns on; and variables of the environment, which
    omegaconf would put into an address that somebody listens at.

    Args:
        packages: What `--allow-import` names in this command; those of an earlier one, in the
            same process, count no more.
    """
    from jsonargparse import set_parsing_settings
    from omegaconf import OmegaConf

    earlier = [package for package in _granted if package not in PLACES]
    set_parsing_settings(
        import_path_denylist=["*", *earlier, *CODE_RUNNERS],
        import_path_allowlist=[*PLACES, *packages],
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    _granted[:] = packages
    OmegaConf.clear_resolver(ENVIRONMENT)


def denied_import(message: str) -> str:
    """Put the refusal of an import into the user's words; empty where a message is none."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if found is None:
        return ""
    return (
        f"{found[1]} is not among the classes that a config may name (docs/reliability.md); if you "
        f"trust both it and the config, type {ALLOW_IMPORT} {found[1].rpartition('.')[0]}"
    )


def require_trusted(settings: Mapping[str, Any], words: Sequence[str]) -> None:
    """Check what was parsed, before anything is built of it; see the two checks.

    Args:
        settings: As parsed, files and flags together.
        words: The flags that were typed, without the config files.

    Raises:
        UserError: If a file asks for more than it may.
    """
    require_classes(settings)
    require_typed(settings, words)


def require_classes(settings: Mapping[str, Any]) -> None:
    """Check that a config names classes, where they are built, and no functions that it may not.

    A function of a known package is the way to run what a stranger has written: `class_path` takes
    class methods too, and some classes take any function.

    Args:
        settings: As parsed, before anything is built.

    Raises:
        UserError: If it names something else.
    """
    for key, value in _leaves(settings):
        if key.endswith(CLASS_PATH) and isinstance(value, str):
            if not (_is_within(value, _granted) or isinstance(pydoc.locate(value), type)):
                raise UserError(f"a config sets {key} to {value}, expected a class; mend it")
        elif inspect.isroutine(value) or isinstance(value, partial):
            path = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
            if not _is_within(path, (*FUNCTIONS, *_granted)):
                raise UserError(
                    f"a config sets {key} to the function {path}, which would be run; if you trust "
                    f"both, type {ALLOW_IMPORT} {path.rpartition('.')[0]}"
                )


def _is_within(path: str, places: Sequence[str]) -> bool:
    return any(f"{path}.".startswith(f"{place}.") for place in places)


def require_typed(settings: Mapping[str, Any], words: Sequence[str]) -> None:
    """Check that whatever runs a command or a program was typed, and not read from a file.

    Args:
        settings: As parsed, files and flags together.
        words: The flags that were typed, without the config files.

    Raises:
        UserError: If a file alone asks for it.
    """
    typed = list(_typed(words))
    for key, value in _leaves(settings):
        is_command = isinstance(value, str) and value.strip().startswith(COMMAND)
        if is_command and not any(value == given for _, given in typed):
            raise UserError(
                f"a config sets {key} to the command `{value}`; commands are run when typed "
                f"alone: --{key} '{value}'"
            )
        is_trust = key.rsplit(".", 1)[-1] == TRUST_SETTING and value
        if is_trust and (key, True) not in typed:
            raise UserError(
                f"a config sets {key}, which runs a program; if you trust its author, type "
                f"--{key} true"
            )


def told_interpolation(error: Exception) -> UserError:
    """Put what omegaconf says of a `${...}` into one line."""
    if ENVIRONMENT in str(error):
        return UserError(
            "a config asks for a variable of the environment (oc.env), which is not told to files; "
            'let the shell fill it in: --data.root "$PHOTOS"'
        )
    return UserError(f"{str(error).splitlines()[0]}; mend the ${{...}} of the config")


def _typed(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Flags and their values, and what is inside of values that hold several."""
    flag = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flag, word = name.removeprefix("--").replace(".init_args", ""), value
            if not equals:
                continue
        yield flag, word
        with contextlib.suppress(yaml.YAMLError):
            yield from _leaves(get_loader("yaml")(word), flag)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are no containers, with the flags that would set them."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            place = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            yield from _leaves(inside, place)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _leaves(inside, key)
    else:
        yield key, value
