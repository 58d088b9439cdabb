"""A frozen vision transformer of timm as a source of features, kept out of every module tree."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from varlit.errors import UserError

WEIGHTS_VARIABLE = "VARLIT_DINO"


class FrozenViT:
    """Token maps of a frozen transformer, before its blocks and after some of them.

    A plain object on purpose: a module that holds it as an attribute keeps it out of
    `parameters()` and `state_dict()`, out of train mode, and out of moving averages.

    Args:
        name: timm's name of a plain vision transformer with a class token.
        weights_file: Its weights; without it `$VARLIT_DINO`, then timm's download.

    Raises:
        UserError: If timm or the weights are not to be had, or the file holds another network.
    """

    def __init__(self, name: str, weights_file: str | None = None) -> None:
        self.name = name
        self._network = _load(name, weights_file)
        self._network.requires_grad_(False).eval()
        if getattr(self._network, "num_prefix_tokens", None) != 1:
            raise UserError(
                f"discriminator.trunk {name} has no single class token; take a plain vision "
                "transformer, such as vit_small_patch16_224.dino"
            )

    @property
    def side_px(self) -> int:
        """Side of the square images that it takes."""
        return int(self._network.patch_embed.img_size[0])

    @property
    def patch_px(self) -> int:
        """Side of the patch that becomes a token."""
        return int(self._network.patch_embed.patch_size[0])

    @property
    def width(self) -> int:
        """C, the channels of a token."""
        return int(self._network.embed_dim)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._network.blocks)

    def move(self, how: Callable[[Tensor], Tensor]) -> None:
        """Follow the holder to a device or dtype; call it from the holder's `_apply`."""
        self._network._apply(how)

    def token_maps(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Tokens before the first block and after each of `blocks`, differentiable in the images.

        Args:
            images: (B, 3, side_px, side_px), normalised as the network was trained.
            blocks: Indices of blocks, from 0, rising.

        Returns:
            len(blocks) + 1 tensors (B, 1 + L, C), the class token first.
        """
        network = self._network
        x = network.norm_pre(network._pos_embed(network.patch_embed(images)))
        maps = [x]
        for i in range(max(blocks, default=-1) + 1):
            x = network.blocks[i](x)
            if i in blocks:
                maps.append(x)
        return maps


def _load(name: str, weights_file: str | None) -> Any:
    """The network with its weights; on the meta device, which has shapes only, without."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"discriminator.kind dino needs timm ({error}). Install it: pip install timm; or take "
            "discriminator.kind patch"
        ) from error
    if not timm.is_model(name):
        near = timm.list_models("vit*dino*")[:4]
        raise UserError(f"timm knows no model {name} (discriminator.trunk); such as {near}")
    source = weights_file or os.environ.get(WEIGHTS_VARIABLE)
    if source or torch.get_default_device().type == "meta":
        network = timm.create_model(name, pretrained=False, num_classes=0)
        if torch.get_default_device().type != "meta":
            assert source
            _fill(network, _read(Path(source).expanduser(), name), source)
        return network
    known = timm.get_pretrained_cfg(name)
    hub_id = known.hf_hub_id if known else name
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the trunk {name} of the dino discriminator is not at hand and could not be fetched "
            f"({type(error).__name__}). Fetch model.safetensors of the hub's {hub_id} and give its "
            f"path in ${WEIGHTS_VARIABLE} or discriminator.weights; or take discriminator.kind "
            "patch"
        ) from error


def _read(path: Path, name: str) -> dict[str, Tensor]:
    expected = f"expected timm's weights of {name}, .safetensors or .pth"
    if not path.is_file():
        raise UserError(f"no file at {path} for the dino discriminator; {expected}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}); {expected}") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds a {type(weights).__name__}; {expected}")
    return weights


def _fill(network: Any, weights: dict[str, Tensor], source: str) -> None:
    """Fill the whole network, leaving nothing random; a classifier's head is left out."""
    expected = network.state_dict()
    missing = [key for key in expected if key not in weights]
    if missing:
        raise UserError(
            f"{source} lacks `{missing[0]}` and {len(missing) - 1} more of discriminator.trunk; "
            f"found {list(weights)[:3]}. Give the file of this trunk"
        )
    try:
        network.load_state_dict({key: weights[key] for key in expected})
    except RuntimeError as error:
        raise UserError(f"{source} has other shapes than discriminator.trunk: {error}") from error
