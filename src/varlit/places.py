"""Where varlit keeps what it can make again: indices of data sets, reference statistics."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "VARLIT_CACHE"


def cache_folder(kind: str) -> Path | None:
    """Return the folder of one kind of thing: in $VARLIT_CACHE, else varlit in ~/.cache.

    Args:
        kind: Name of the sub-folder.

    Returns:
        A folder that may not exist yet; None where $VARLIT_CACHE is set and empty, which wants
        nothing kept, or where the user has no home.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given == "":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(given or Path(home) / "varlit").expanduser() / kind
    except RuntimeError:
        return None
