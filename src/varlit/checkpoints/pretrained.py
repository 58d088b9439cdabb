"""The public face of trained models: load, sample, edit, save, share; see docs/python.md.

`PretrainedVQVAE` and `PretrainedVAR` are the networks themselves, frozen, with the verbs that need
more than a network; each has a file of its own, and `load` gives whichever it finds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TypeVar

from varlit.checkpoints.official import load_official
from varlit.checkpoints.pretrained_var import PretrainedVAR
from varlit.checkpoints.pretrained_vqvae import PretrainedVQVAE
from varlit.checkpoints.store import RUNS_FOLDER, find_model
from varlit.errors import UserError
from varlit.models.files import LoadedVAR, load_tokenizer, load_var, read_model_config

__all__ = ["PretrainedVAR", "PretrainedVQVAE", "load"]

P = TypeVar("P", PretrainedVQVAE, PretrainedVAR)


def load(
    name: str | Path, root: Path | str = RUNS_FOLDER, revision: str | None = None
) -> PretrainedVQVAE | PretrainedVAR:
    """Load a model, frozen and in eval mode, on the CPU.

    Args:
        name: Name of a run, a model's folder, an official `.pth` file, or `owner/model` on the
            Hugging Face hub; the first that exists, in this order.
        root: Where runs live.
        revision: Branch, tag or commit on the hub.

    Returns:
        A tokenizer or a transformer, whichever it is.

    Raises:
        UserError: If there is no such model or it is damaged.
    """
    if Path(name).is_file():
        return _load_official(Path(name))
    folder = find_model(name, root, revision)
    if read_model_config(folder)["model"] == "tokenizer":
        return PretrainedVQVAE.of(load_tokenizer(folder))
    return PretrainedVAR.of(load_var(folder))


def load_kind(kind: type[P], name: str | Path, revision: str | None) -> P:
    """Load a model that must be of this kind; as `load` otherwise."""
    model = load(name, revision=revision)
    if not isinstance(model, kind):
        raise UserError(f"{name} is not a {kind.kind}; load it with varlit.load")
    return model


def _load_official(path: Path) -> PretrainedVQVAE | PretrainedVAR:
    models = load_official(path)
    for note in models.notes:
        warnings.warn(note, stacklevel=3)
    if models.var is not None:
        return PretrainedVAR.of(LoadedVAR(models.var, models.tokenizer, path))
    assert models.tokenizer is not None
    return PretrainedVQVAE.of(models.tokenizer)
