"""The Inception network of FID, as torch-fidelity ports it from the TensorFlow graph of 2015.

Its weights come from a file, the torch hub cache or a download. Its spatial features are those
of ADM's sFID.
"""

from __future__ import annotations

import os
import pickle
import warnings
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.metrics.networks import INCEPTION, FeatureNetwork, Features, sha256

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_PREFIX = "6726825d"
INCEPTION_VARIABLE = "VARLIT_INCEPTION"
INPUT_PX = 299
# ADM's sFID looks at TensorFlow's `mixed_6/conv`, which is Mixed_6d.branch1x1 of the port: 7 of
# its 192 channels at 17x17, nearly as many numbers as pooled features.
_SPATIAL_CHANNELS = 7


def open_inception(weights: str | None = None) -> FeatureNetwork:
    """Inception as a feature network: 2,048 features, 2,023 spatial ones, 1,008 logits.

    Args:
        weights: Its file; without it as `find_inception` says.

    Raises:
        UserError: If the weights are not to be had, or the file holds others.
    """
    path = find_inception(weights)
    found, remark = sha256(path), ""
    if not found.startswith(INCEPTION_SHA256_PREFIX):
        remark = (
            f"Inception's weights are not torch-fidelity's (sha256 {found[:8]}, expected "
            f"{INCEPTION_SHA256_PREFIX}): the numbers compare with no published ones"
        )
        warnings.warn(f"{path}: {remark}", stacklevel=2)
    return FeatureNetwork(
        _Inception(load_inception(path)),
        INCEPTION,
        weights_hash=found,
        weights_file=path.name,
        input_px=INPUT_PX,
        resize=f"{INPUT_PX} px, bilinear as TensorFlow 1, no antialiasing",
        is_inception=True,
        remark=remark,
    )


class _Inception(nn.Module):
    """torch-fidelity's extractor, with the spatial features taken on the way."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self._spatial: Tensor | None = None
        extractor.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._take_spatial)

    def forward(self, images: Tensor) -> Features:
        pool, logits = self.extractor(images)
        spatial, self._spatial = self._spatial, None
        return Features(pool, spatial, logits)

    def _take_spatial(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        # In TensorFlow's order of height, width, channel, as `sigma_s` in ADM's files.
        self._spatial = output[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


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
