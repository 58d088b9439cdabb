"""Where the Inception network of FID comes from: a file, the torch hub cache or a download."""

from __future__ import annotations

import hashlib
import os
import pickle
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn

from varlit.errors import UserError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_PREFIX = "6726825d"
INCEPTION_VARIABLE = "VARLIT_INCEPTION"


def find_inception(weights: str | None = None) -> Path:
    """Inception's weights: the given file, `$VARLIT_INCEPTION`, the torch hub cache, a download.

    Call it once before many processes start, so that only one of them downloads.

    Raises:
        UserError: If none of them is to be had; says which file to put where.
    """
    given = weights or os.environ.get(INCEPTION_VARIABLE)
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"no Inception weights at {path}; expected the file {INCEPTION_FILE}")
        return path
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if cached.is_file():
        return cached
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(cached), INCEPTION_SHA256_PREFIX)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            "FID needs the Inception weights, which are not at hand and could not be fetched "
            f"({type(error).__name__}: {error}). Put torch-fidelity's {INCEPTION_FILE} (release "
            f"v0.2.0) at {cached}, or its path in ${INCEPTION_VARIABLE}"
        ) from error
    return cached


def load_inception(path: Path) -> nn.Module:
    """torch-fidelity's port of the 2015 Inception graph: pool features and unbiased logits.

    Raises:
        UserError: If the file holds other weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity unpickles whatever it is given; this load refuses all but tensors.
        torch.load(path, map_location="cpu", weights_only=True)
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(path)
        )
    except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        raise UserError(
            f"{path} does not hold Inception's weights ({reason}); expected torch-fidelity's "
            f"{INCEPTION_FILE}"
        ) from error
    return network


def sha256(path: Path) -> str:
    """Checksum of a file, to name it beyond doubt."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
