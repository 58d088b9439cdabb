"""Find a run by name or path and load what it holds."""

from __future__ import annotations

import difflib
from pathlib import Path

from varlit.errors import UserError
from varlit.models.files import (
    CONFIG_FILE,
    LoadedVAR,
    load_tokenizer,
    load_var,
    read_model_config,
)
from varlit.models.vqvae import VQVAE

RUNS_FOLDER = Path("runs")


def find_model(name: str | Path, root: Path | str = RUNS_FOLDER) -> Path:
    """Folder of a model, given its path or the name of its run.

    Raises:
        UserError: If there is none; the nearest names of runs are given.
    """
    candidates = [Path(name), Path(root) / name]
    for folder in candidates:
        if (folder / CONFIG_FILE).is_file():
            return folder
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


def load(name: str | Path, root: Path | str = RUNS_FOLDER) -> VQVAE | LoadedVAR:
    """Load a model from its folder or run name, frozen and in eval mode.

    Returns:
        A `VQVAE` for a tokenizer; a `LoadedVAR` (transformer and tokenizer) for a VAR.
    """
    folder = find_model(name, root)
    if read_model_config(folder)["model"] == "tokenizer":
        return load_tokenizer(folder)
    return load_var(folder)
