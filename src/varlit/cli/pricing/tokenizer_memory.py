"""What training a tokenizer holds in memory and saves: the network, its judge, and an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from varlit.cli.pricing.tracing import Traced, count, traced
from varlit.models.config import TokenizerConfig
from varlit.models.initialization import shapes_only
from varlit.models.vqvae import VQVAE
from varlit.ops.costs import BYTES_PER_TRAINED_PARAMETER

BYTES_OF_AN_AVERAGE = 4
BYTES_OF_A_GRADIENT = 4


@dataclass(frozen=True)
class TokenizerMemory:
    """Bytes on one device; LPIPS and the activations of the discriminator aside."""

    network: VQVAE
    """Of shapes alone."""
    encoder: Traced
    decoder: Traced
    num_discriminator: int
    """Its parameters; 0 where there is none."""
    states: float
    per_image: float
    saved: float
    """A checkpoint: weights, average and the optimizers' moments."""
    words: str
    """What the states are made of."""


def tokenizer_memory(settings: Mapping[str, Any]) -> TokenizerMemory:
    """Estimate what a step holds at its peak.

    Args:
        settings: Resolved settings with `model` and `trainer`.
    """
    model = settings.get("model") or {}
    config = TokenizerConfig.of(model.get("tokenizer") or {})
    side = config.image_size
    with shapes_only():
        network = VQVAE(config)
        encoder = traced(lambda: network.encoder(torch.empty(1, 3, side, side)), network)
        latent = torch.empty(1, config.codebook_dim, side // config.stride, side // config.stride)
        decoder = traced(lambda: network.decoder(latent), network)
    is_half = "16" in str((settings.get("trainer") or {}).get("precision", ""))
    averaged, discriminator = has_average(model), _count_discriminator(model)
    num_weights = count(network) + discriminator
    states = num_weights * (BYTES_PER_TRAINED_PARAMETER + BYTES_OF_AN_AVERAGE * averaged)
    unaveraged = BYTES_OF_AN_AVERAGE * averaged * discriminator
    return TokenizerMemory(
        network=network,
        encoder=encoder,
        decoder=decoder,
        num_discriminator=discriminator,
        states=states,
        per_image=(encoder.saved_bytes + decoder.saved_bytes) / (2 if is_half else 1),
        saved=states - BYTES_OF_A_GRADIENT * num_weights - unaveraged,
        words="weights, gradients, AdamW" + ", average" * averaged,
    )


def has_average(model: Mapping[str, Any]) -> bool:
    """Whether a model of either stage keeps an average of its weights."""
    from varlit.training.optim import OptimConfig, TokenizerOptimConfig

    default = OptimConfig() if "var" in model else TokenizerOptimConfig()
    return bool((model.get("optim") or {}).get("ema_decay", default.ema_decay))


def _count_discriminator(model: Mapping[str, Any]) -> int:
    if (model.get("loss") or {}).get("disc_weight", 0.4) == 0:
        return 0
    from varlit.models.discriminator import DiscriminatorConfig, build_discriminator

    with shapes_only():
        return count(build_discriminator(DiscriminatorConfig.of(model.get("discriminator") or {})))
