"""What training a VAR holds in memory, and how its settings of speed, LoRA and AdamW change it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varlit.cli.pricing.tracing import block_bytes, count
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR

FP32, BF16 = 4, 2
BYTES_OF_LEARNING = 12
"""A trained weight's gradient and AdamW's two moments."""
BYTES_MUON_SPARES = 4
"""It has one moment."""


@dataclass(frozen=True)
class VARMemory:
    """Bytes on one device, nothing sharded."""

    states: float
    per_image: float
    saved: float
    """A checkpoint: weights, average and the optimizer's moments."""
    words: str
    """What the states are made of."""
    trained_share: float
    """Of the weights: 1, or less with LoRA."""
    is_recomputed: bool
    """Whether the backward pass runs the forward of every block again."""

    @property
    def training_passes(self) -> float:
        """Operations of a step in forward passes: gradients of activations, and of weights."""
        return 2 + self.trained_share + self.is_recomputed


def var_memory(network: VAR, settings: Mapping[str, Any], averaged: bool) -> VARMemory:
    """Estimate what a step holds at its peak, attention in segments or by a kernel as sparing.

    Args:
        network: Of shapes alone; LoRA's adapters are put in.
        settings: Resolved settings with `model` and `trainer`.
        averaged: Whether there is an average of the weights.

    Raises:
        UserError: If settings of speed or LoRA make no sense.
    """
    model = settings.get("model") or {}
    is_half = "16" in str((settings.get("trainer") or {}).get("precision", ""))
    num_weights = count(network)
    trained = _count_trained(network, model.get("lora") or {})
    with_muon = (model.get("optim") or {}).get("optimizer") == "muon"
    spared = BYTES_MUON_SPARES * _count_muons(network) if with_muon else 0
    bytes_each = FP32 + FP32 * averaged + BF16 * is_half
    words = "weights, gradients, " + "Muon and " * with_muon + "AdamW"
    words += ", average" * averaged + ", bf16 copies" * is_half
    length, width = network.steps.num_tokens, network.config.resolved_width
    block, depth = block_bytes(network.config, network.steps, is_half), network.config.depth
    is_recomputed = _is_recomputed(model.get("speed") or {})
    # The residual stream is fp32 in any case.
    kept = depth * length * width * FP32 + block if is_recomputed else depth * block
    # Logits, their gradient, and the product of that with the gradient of the mean.
    logits = 3 * length * network.tokenizer_config.codebook_size * (BF16 if is_half else FP32)
    return VARMemory(
        states=num_weights * bytes_each + trained * BYTES_OF_LEARNING - spared,
        per_image=kept + logits,
        saved=num_weights * (FP32 + FP32 * averaged) + trained * 2 * FP32 - spared,
        words=words,
        trained_share=trained / num_weights,
        is_recomputed=is_recomputed,
    )


def _count_trained(network: VAR, lora: Mapping[str, Any]) -> int:
    """Weights that learn; with LoRA its factors and the parts that are trained whole."""
    from varlit.training.lora import LoRAConfig, add_lora

    config = LoRAConfig.of(dict(lora))
    if config.rank:
        with shapes_only():
            add_lora(network, config)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _count_muons(network: VAR) -> int:
    from varlit.training.muon import is_muons

    return sum(p.numel() for name, p in network.named_parameters() if is_muons(name))


def _is_recomputed(speed: Mapping[str, Any]) -> bool:
    if not speed:
        return False
    # Only where it is set: it brings Lightning in, which takes seconds.
    from varlit.training.var_speed import SpeedConfig

    return SpeedConfig.of(dict(speed)).checkpointing == "blocks"
