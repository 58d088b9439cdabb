"""What a config file may ask for: settings and known classes, no code of its author's.

Recipes are passed around, and the config of a run comes with its folder. A file may choose among
classes; what runs other code, or a command, has to be typed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varlit.errors import UserError

ALLOW_IMPORT = "--allow-import"
PACKAGES = ("varlit", "lightning", "torch", "torchvision")
"""Whose classes a config may name. jsonargparse asks before it imports, and once more where the
object found is defined: `torch.os.system` is not torch's."""
CODE_RUNNERS = (
    *("torch.load", "torch.serialization", "torch.hub", "torch.jit", "torch.package", "torch.fx"),
    *("torch.ops", "torch.classes", "torch.multiprocessing", "torch.testing", "torch.export"),
    *("torch.utils.cpp_extension", "torch.utils.benchmark", "torch.utils.bottleneck"),
    *("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run"),
    *("torch._C", "torch._dynamo", "torch._inductor", "torch.utils.model_zoo"),
    *("lightning.pytorch.cli", "lightning.fabric.cli", "lightning.pytorch.strategies.launchers"),
    *("lightning.fabric.strategies.launchers", "varlit.cli", "varlit.page"),
)
"""Parts of those that load programs, compile texts or start processes."""
COMMAND = "pipe:"
ENVIRONMENT = "oc.env"
TRUST_SETTING = "trust_torchscript"

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
    """Let the parser import classes of `PACKAGES` and of those given, and nothing else.

    Also off: classes where any value is accepted, which no type would hold back; config files
    behind addresses, which Lightning turns on; and variables of the environment, which
    omegaconf would put into an address that somebody listens at.

    Args:
        packages: What `--allow-import` names in this command; those of an earlier one, in the
            same process, count no more.
    """
    from jsonargparse import set_parsing_settings
    from omegaconf import OmegaConf

    earlier = [package for package in _granted if package not in PACKAGES]
    set_parsing_settings(
        import_path_denylist=["*", *earlier, *CODE_RUNNERS],
        import_path_allowlist=[*PACKAGES, *packages],
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
    path = found[1]
    whole = any(f"{path}.".startswith(f"{part}.") for part in CODE_RUNNERS)
    what = "can load or run code" if whole else f"is not of {', '.join(PACKAGES)}"
    return (
        f"{path} {what}, and a config may not name it; if you trust it, type "
        f"{ALLOW_IMPORT} {path if whole else path.split('.')[0]}"
    )


def require_typed(settings: Mapping[str, Any], words: Sequence[str]) -> None:
    """Check that whatever runs a command or a program was typed, and not read from a file.

    Args:
        settings: As parsed, files and flags together.
        words: The flags that were typed, without the config files.

    Raises:
        UserError: If a file alone asks for it.
    """
    for key, value in _leaves(settings):
        is_command = isinstance(value, str) and value.strip().startswith(COMMAND)
        if is_command and not any(value in word for word in words):
            raise UserError(
                f"a config sets {key} to the command `{value}`; commands are run when typed "
                f"alone: --{key} '{value}'"
            )
        is_trust = key.rsplit(".", 1)[-1] == TRUST_SETTING and value
        if is_trust and not any(TRUST_SETTING in word for word in words):
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
