"""Find a model: by path, by the name of its run, or on the hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from varlit.checkpoints.hub import fetch, is_hub_id
from varlit.errors import UserError
from varlit.models.files import CONFIG_FILE

RUNS_FOLDER = Path("runs")


def find_model(
    name: str | Path, root: Path | str = RUNS_FOLDER, revision: str | None = None
) -> Path:
    """Folder of a model, given its path, the name of its run, or `owner/model` on the hub.

    Args:
        name: What the user typed.
        root: Where runs live.
        revision: Branch, tag or commit on the hub; without effect on local models.

    Raises:
        UserError: If there is none; the nearest names of runs are given.
    """
    candidates = [Path(name), Path(root) / name]
    for folder in candidates:
        if (folder / CONFIG_FILE).is_file():
            return folder
    if Path(name).is_file():
        raise UserError(
            f"{name} is a file, expected a run or the folder of a model; an official checkpoint is "
            f"converted first: varlit convert {name}"
        )
    if is_hub_id(name) and not Path(name).parent.is_dir():
        return fetch(str(name), revision)
    known = sorted(str(p.parent.relative_to(root)) for p in Path(root).glob(f"*/{CONFIG_FILE}"))
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"models in {root}/: {', '.join(known)}"
    if near:
        hint = f"did you mean `{near[0]}`?"
    elif not known:
        hint = f"{root}/ holds none yet; `make demo` trains a small one, CONF=digits needs no data"
    unfinished = [f for f in candidates if f.is_dir()]
    why = f"{unfinished[0]} has no {CONFIG_FILE} yet" if unfinished else "no such folder or run"
    raise UserError(f"no model `{name}`: {why}; {hint}")
