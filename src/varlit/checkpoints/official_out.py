"""Where a converted model may be written, so that nothing that is there is lost.

The rule: a folder that is new or empty, or one that holds this very model (same config, same
weights), which is then completed, as by a tokenizer. What a conversion leaves behind that was
killed is no obstacle: the same command again goes through.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from varlit.errors import UserError
from varlit.models.files import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    LoadedVAR,
    load_tokenizer,
    load_var,
    read_model_config,
)
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TEMPORARY = re.compile(r"(config\.json|(model|official)\.safetensors)\.tmp\d+")


def check_out(
    folder: Path, network: VQVAE | VAR, tokenizer: VQVAE | None = None
) -> LoadedVAR | None:
    """Refuse a folder with anything but this model in it.

    Args:
        folder: Where `network` is to be written.
        network: Tokenizer or VAR.
        tokenizer: What is to be written beside a VAR.

    Returns:
        The VAR that is there already, None for a new folder or a tokenizer.

    Raises:
        UserError: If the folder is a file, or holds another model or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, expected a folder; give another --out")
    for parent in folder.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"--out {folder} lies in the file {parent}; give another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / CONFIG_FILE).exists():
        if not _is_left_over(folder, tokenizer):
            raise UserError(
                f"{folder} holds other files and no model; give a new --out, or empty it"
            )
        for path in (*folder.iterdir(), *(folder / TOKENIZER_FOLDER).glob("*")):
            if TEMPORARY.fullmatch(path.name):
                path.unlink()
        return None
    kind = read_model_config(folder)["model"]
    if isinstance(network, VQVAE):
        if kind != "tokenizer":
            raise UserError(f"{folder} holds a VAR, and this is a tokenizer; {_remedy(folder)}")
        there = load_tokenizer(folder)
        if there.config != network.config or not _same_weights(there, network):
            raise UserError(f"{folder} holds another tokenizer; {_remedy(folder)}")
        return None
    if kind != "var":
        raise UserError(f"{folder} holds a tokenizer, and this is a VAR; {_remedy(folder)}")
    found = load_var(folder)
    same = found.var.config == network.config and found.var.scales == network.scales
    if not (same and _same_weights(found.var, network)):
        raise UserError(f"{folder} holds another VAR; {_remedy(folder)}")
    bundled = found.bundled
    if tokenizer is not None and bundled is not None and not _same_weights(bundled, tokenizer):
        raise UserError(f"{folder} holds this VAR with another tokenizer; {_remedy(folder)}")
    return found


def _is_left_over(folder: Path, tokenizer: VQVAE | None) -> bool:
    """Whether all that is there is the start of this conversion, which did not reach its end."""
    inner = folder / TOKENIZER_FOLDER
    if _finished_in(folder) - {TOKENIZER_FOLDER}:
        return False
    if not inner.exists():
        return True
    if not inner.is_dir() or tokenizer is None:
        return False
    if _finished_in(inner) <= {CONFIG_FILE}:
        return True
    return (inner / CONFIG_FILE).exists() and _same_weights(load_tokenizer(inner), tokenizer)


def _finished_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not TEMPORARY.fullmatch(path.name)}


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def _remedy(folder: Path) -> str:
    return f"give another --out, or move {folder} away; nothing was written"
