"""A TorchScript file as a feature network: a program of its author's, run at its user's word."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from torch import nn

from varlit.errors import UserError
from varlit.metrics.networks import FeatureNetwork, sha256


def open_torchscript(weights: str | None, trusted: bool = False) -> FeatureNetwork:
    """A scripted or traced module from uint8 (B, 3, H, W) to features, as a network.

    It resizes images itself and is called `torchscript_<name of the file>`.

    Args:
        weights: The file.
        trusted: Whether the user vouches for the file: `torch.jit.load` runs what it holds.

    Raises:
        UserError: If nobody vouches for it, or it is no such file.
    """
    if not weights:
        raise UserError("the feature network `torchscript` needs its file; none was given")
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(f"no TorchScript file at {path}; give one written by torch.jit.save")
    if not trusted:
        raise UserError(
            f"{path} is a program, and to load it is to run it; if you trust whoever made it, "
            "say so (trust_torchscript)"
        )
    try:
        with warnings.catch_warnings():
            # That TorchScript is deprecated helps nobody who was given such a file.
            warnings.simplefilter("ignore", FutureWarning)
            module: nn.Module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        raise UserError(f"{path} cannot be read as TorchScript ({reason})") from error
    name = "torchscript_" + re.sub(r"[^\w.-]", "_", path.stem)
    try:
        return FeatureNetwork(module, name, sha256(path), path.name)
    except RuntimeError as error:  # raised inside the program, by the images it was given
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path} does not take uint8 images (2, 3, 32, 32) ({reason}); it must resize them "
            "itself"
        ) from error
