"""Starting a tokenizer from another one: the same autoencoder and codebook, other scales."""

from pathlib import Path

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.models.config import TokenizerConfig
from varlit.models.files import load_tokenizer
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.vqvae import VQVAE
from varlit.training.start_folder import find_start

# What decides the shapes of the autoencoder and the codebook. Scales and phi may differ.
SHARED_FIELDS = (
    "channels",
    "channel_multipliers",
    "num_res_blocks",
    "codebook_size",
    "codebook_dim",
    "phi_ratio",
    "norm_groups",
)
PHI = "quantizer.phis."


@torch.no_grad()
def start_from(network: VQVAE, given: str) -> None:
    """Give a fresh tokenizer the weights of another, such as a single-scale one.

    Phis are copied where the other has trained all that this one uses, as for 512 px from 256 px.
    Else every phi becomes the other's finest: a convolution of a sum is the sum of the
    convolutions, so a pyramid that adds up to the old map decodes as the old map did. The biases
    add up too, hence are shared out. (BitVAE's README trains a single scale first and the pyramid
    from there.)

    Args:
        network: Changed in place.
        given: Folder of a tokenizer, or the name of its run.

    Raises:
        UserError: If there is no such tokenizer, or its autoencoder or codebook differs.
    """
    folder = find_start(given, "tokenizer")
    other = load_tokenizer(folder)
    _check_shapes(network.config, other.config, folder)
    weights = other.state_dict()
    if not _has_all_phis(network.quantizer, other.quantizer):
        weights = {k: v for k, v in weights.items() if not k.startswith(PHI)}
        weights |= _shared_phi(network, other)
    network.load_state_dict(weights)


def _check_shapes(own: TokenizerConfig, other: TokenizerConfig, folder: Path) -> None:
    for name in SHARED_FIELDS:
        mine, theirs = getattr(own, name), getattr(other, name)
        if mine != theirs:
            raise UserError(
                f"model.init_from: {folder} has {name} {_told(theirs)}, this tokenizer has "
                f"{_told(mine)}; only scales and num_phi may differ. Set --model.tokenizer.{name} "
                f"{_told(theirs)}"
            )


def _has_all_phis(own: MultiScaleQuantizer, other: MultiScaleQuantizer) -> bool:
    return len(own.phis) == len(other.phis) and set(own.phi_index) <= set(other.phi_index)


def _shared_phi(network: VQVAE, other: VQVAE) -> dict[str, Tensor]:
    """Every phi of `network` as the finest phi of `other`."""
    source = other.quantizer
    finest = source.phis[source.phi_index[-1]].state_dict()
    share = source.scales.num_scales / network.scales.num_scales
    phis = range(len(network.quantizer.phis))
    named = {f"{PHI}{i}.weight": finest["weight"] for i in phis}
    return named | {f"{PHI}{i}.bias": finest["bias"] * share for i in phis}


def _told(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")
