"""Files that appear whole or not at all: written under another name, then renamed into place."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varlit.disks import refusal
from varlit.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: If the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"'{path}' is not valid JSON ({error}): remove it and its cache."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not a JSON object: remove it and its cache.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object under a temporary name, then rename it into place."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it into place.

    Raises:
        UserError: If there is no space or no permission.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {refusal(error, path)}. Free some space or mend the "
            "permission, then run the same command again; finished shards are kept."
        ) from error
