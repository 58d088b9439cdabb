"""A recipe's settings as `fit` would take them, or its refusal; nothing is run or written."""

from __future__ import annotations

import contextlib
import io
import textwrap
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varlit.cli.config.recipes import STAGES, find_recipe
from varlit.cli.pricing.info import find_settings
from varlit.errors import UserError

MAX_CHARACTERS = 400


@dataclass(frozen=True)
class Resolved:
    """What `fit` would run with, and where it would write."""

    stage: str
    settings: dict[str, Any]
    run_dir: Path


def find(given: str) -> tuple[str, Path]:
    """Find a recipe's stage and file.

    Args:
        given: A recipe's name, `stage/name`, a file or a run.

    Raises:
        UserError: If there is no such recipe, or two of them.
    """
    stage, _, name = given.partition("/")
    if stage in STAGES and not Path(given).is_file():
        return stage, find_recipe(stage, name)
    found = find_settings(given)
    if len(found) > 1:
        names = " or ".join(f"{stage}/{given}" for stage, _ in found)
        raise UserError(f"`{given}` is a recipe of both stages; say {names}")
    return found[0]


def flags_of(args: Namespace, stage: str) -> list[str]:
    """Write the doctor's flags as those of `fit`; what was not typed is the recipe's."""
    given = {
        "--data.root" if stage == "tokenizer" else "--data.tokens": args.data,
        "--name": args.name,
        "--root": "" if args.root == Path("runs") else str(args.root),
        "--gpus": "" if args.gpus == "auto" else args.gpus,
    }
    return [f"{flag}={value}" for flag, value in given.items() if value]


def resolve(given: str, words: list[str]) -> Resolved:
    """Read a recipe by the parser of `fit`.

    Args:
        given: See `find`.
        words: Flags such as `--model.var.depth 20`, and `--trainer fsdp`.

    Raises:
        UserError: If there is no such recipe, or `fit` would refuse it; says what `fit` says.
    """
    from varlit.cli.doctor.rehearsal import Rehearsal, stage_called

    stage, path = find(given)
    words = ["-c", str(path), *words]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            rehearsal = Rehearsal(stage_called(stage, words), "fit", words)
    except SystemExit as stop:
        if not stop.code:
            raise UserError(f"a flag asks for help: type it after varlit {stage} fit") from None
        raise UserError(_told(said.getvalue())) from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a word that no file can be called
        raise UserError(f"a setting cannot be read: {str(error)[:MAX_CHARACTERS]}") from error
    return Resolved(stage, rehearsal.settings.as_dict(), rehearsal.run_dir)


def _told(said: str) -> str:
    """Join the parser's message and hint in one line, without the warnings before them."""
    message = said.rpartition("varlit: ")[2]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return textwrap.shorten("; ".join(lines) or "fit refuses it", MAX_CHARACTERS)
