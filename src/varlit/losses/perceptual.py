"""LPIPS, the perceptual distance of Zhang et al. 2018, over the lpips package.

The network is no part of any module tree: no checkpoint, optimizer or moving average sees it.
Its trunk comes from a file or from torchvision's download; the heads ship inside lpips.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from varlit.errors import UserError

PerceptualNet = Literal["vgg", "alex", "squeeze"]

# Below these sides (px) a pooling of the trunk has nothing left to pool (measured, lpips 0.1.4).
# No upsampling above them: at 32 px VGG's five maps are 32, 16, 8, 4 and 2 wide, all in use.
MINIMUM_SIDE_PX = {"vgg": 16, "alex": 31, "squeeze": 17}


class PerceptualLoss:
    """LPIPS distance of image pairs, differentiable in the images, never in the network.

    A plain object on purpose: a module that holds it as an attribute keeps it out of
    `parameters()` and `state_dict()`, and out of train mode (the heads contain dropout). The
    network follows the device of the images.

    Args:
        net: The trunk: `vgg`, `alex` or `squeeze`.
        weights_file: torchvision state dict of the trunk; without it `$VARLIT_LPIPS_<NET>`, then
            torchvision's cache or download.

    Raises:
        UserError: If the trunk is not to be had, or the file holds another network.
    """

    def __init__(self, net: PerceptualNet = "vgg", weights_file: str | None = None) -> None:
        if net not in MINIMUM_SIDE_PX:
            raise UserError(f"perceptual_net must be one of {list(MINIMUM_SIDE_PX)}; got {net!r}")
        self.net = net
        # Weights first: where they are missing, nobody waits for the network to be built.
        trunk = load_trunk(net, weights_file)
        self._network = _build(net)
        _fill_trunk(self._network, trunk, net)
        self._network.requires_grad_(False).eval()

    def __call__(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Distance of each pair, in fp32 whatever autocast says.

        Args:
            reconstruction: (B, 3, H, W), nominally in [-1, 1]; gradients flow to it.
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B,) distances, 0 for equal images.
        """
        side, minimum = min(images.shape[-2:]), MINIMUM_SIDE_PX[self.net]
        if side < minimum:
            raise UserError(
                f"LPIPS with {self.net} needs images of at least {minimum} px; got {side} px. "
                "Set perceptual_weight 0 for images this small"
            )
        self._network.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            distance: Tensor = self._network(reconstruction.float(), images.float())
        return distance.flatten()  # (B,)


def load_trunk(net: PerceptualNet, weights_file: str | None = None) -> dict[str, Tensor]:
    """Weights of a trunk from the file, `$VARLIT_LPIPS_<NET>`, the torch hub cache or a download.

    Call it once before many processes start, so that only one of them downloads.

    Raises:
        UserError: If none of them is to be had; says which file to put where.
    """
    variable = f"VARLIT_LPIPS_{net.upper()}"
    source = weights_file or os.environ.get(variable)
    if source:
        return _read_trunk(Path(source).expanduser(), net)
    from torchvision import models

    enum = {
        "vgg": models.VGG16_Weights,
        "alex": models.AlexNet_Weights,
        "squeeze": models.SqueezeNet1_1_Weights,
    }[net]
    weights = enum.IMAGENET1K_V1
    cache = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    try:
        # Without check_hash a broken download would pass for the trunk.
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the {net} trunk of the perceptual loss is not at hand and could not be fetched "
            f"({type(error).__name__}: {error}). Put torchvision's {cache.name} at {cache}, or "
            f"its path in ${variable} or perceptual_weights; or set perceptual_weight 0"
        ) from error


def _read_trunk(path: Path, net: str) -> dict[str, Tensor]:
    expected = f"expected torchvision's state dict of {net}, whole or `features.*` only"
    if not path.is_file():
        raise UserError(f"no file at {path} for the perceptual loss; {expected}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}); {expected}") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds a {type(weights).__name__}; {expected}")
    return weights


def _build(net: str) -> nn.Module:
    import lpips

    with warnings.catch_warnings():  # lpips calls torchvision by a deprecated argument
        warnings.simplefilter("ignore", UserWarning)
        network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    return network


def _fill_trunk(network: nn.Module, trunk: dict[str, Tensor], net: str) -> None:
    """Copy `features.<i>.*` of torchvision to lpips' `slice<n>.<i>.*`, leaving none random."""
    target = network.get_submodule("net")
    named = {key: "features." + key.split(".", 1)[1] for key in target.state_dict()}
    missing = [source for source in named.values() if source not in trunk]
    if missing:
        raise UserError(
            f"the given weights are not torchvision's {net}: `{missing[0]}` is missing, found "
            f"{list(trunk)[:3]}. Give the file of this network or change perceptual_net"
        )
    try:
        target.load_state_dict({key: trunk[source] for key, source in named.items()})
    except RuntimeError as error:
        raise UserError(
            f"the given weights have other shapes than torchvision's {net}: {error}"
        ) from error
