"""What a forward pass costs, found on torch's meta device: operations, and bytes for the backward.

Networks are built there from shapes without numbers, so that d30 takes a second and no memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from varlit.models.blocks import Block
from varlit.models.var import VAR


@dataclass(frozen=True)
class Traced:
    """One forward pass on the meta device."""

    flops: float
    saved_bytes: float
    """What autograd keeps for the backward pass, in fp32."""


def count(network: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def traced(forward: Callable[[], Any], network: nn.Module) -> Traced:
    """Run a forward pass and note its operations and what autograd keeps of it."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            forward()
        return Traced(counter.get_total_flops(), _storage_bytes(kept.values()))


def _storage_bytes(tensors: Iterable[torch.Tensor]) -> float:
    return float(sum(tensor.untyped_storage().nbytes() for tensor in tensors))


def block_bytes(network: VAR) -> float:
    """What autograd keeps of one block, for one image."""
    length, width = network.scales.num_tokens, network.config.resolved_width
    block, x = network.blocks[0], torch.empty(1, length, width, requires_grad=True)
    condition = torch.empty(1, 6, width) if network.config.shared_adaln else torch.empty(1, width)
    mask = torch.empty(length, length, dtype=torch.bool)
    assert isinstance(block, Block)
    return traced(lambda: block(x, block.modulation(condition), mask), block).saved_bytes
