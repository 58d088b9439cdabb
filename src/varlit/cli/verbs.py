"""The verb after a stage's name, read without torch: its card, its check, its nearest match."""

import difflib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from varlit.errors import UserError


def parse_verb(
    stage: str, argv: list[str], verbs: Sequence[str], card: str
) -> tuple[str | None, list[str]]:
    """Split `fit --name x` into the verb and its words; print the card when there is no verb.

    Returns:
        The verb, None when the card was what was asked for, and the words after it.

    Raises:
        UserError: If there is no such verb.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        print(card, end="")
        return None, []
    if argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, 1)
        hint = f"did you mean `varlit {stage} {near[0]}`?" if near else f"verbs: {', '.join(verbs)}"
        raise UserError(f"varlit {stage} has no verb `{argv[0]}`; {hint}")
    return argv[0], argv[1:]


def typed(command: str) -> str:
    """Write `varlit ...` as it can be typed here: with its path where the shell would not find it.

    `make` runs .venv/bin/varlit in a shell that knows of no environment.
    """
    own = Path(sys.argv[0])
    if shutil.which("varlit") or own.name != "varlit" or not own.is_file():
        return command
    return os.path.relpath(own) + command.removeprefix("varlit")
