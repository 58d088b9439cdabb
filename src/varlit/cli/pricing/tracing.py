"""What a forward pass costs, found without numbers: operations, and bytes for the backward.

Networks are built from shapes, on torch's meta device or as fake tensors, so that d30 takes a
second and no memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from varlit.models.attention import AttentionPlan, plan_attention
from varlit.models.blocks import Block
from varlit.models.config import VARConfig
from varlit.ops.steps import Steps


@dataclass(frozen=True)
class Traced:
    """One forward pass without numbers."""

    flops: float
    saved_bytes: float
    """What autograd keeps for the backward pass."""


def count(network: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def traced(forward: Callable[[], Any], network: nn.Module) -> Traced:
    """Run a forward pass and note its operations and what autograd keeps of it."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            forward()
        return Traced(counter.get_total_flops(), _storage_bytes(kept.values()))


def _storage_bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.untyped_storage().nbytes() for tensor in tensors))


def block_bytes(config: VARConfig, steps: Steps, is_half: bool) -> float:
    """What autograd keeps of one block for one image more, attended to in segments.

    Traced with fake tensors of a real device: on the meta device attention would keep all its
    probabilities, which no kernel in use does, and autocast would change no type.
    """
    length, width = steps.num_tokens, config.resolved_width
    plan = plan_attention(steps, "segmented")
    sizes = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        block = Block(config, drop_path=0.0)
        for num_images in (1, 2):
            x = torch.empty(num_images, length, width, requires_grad=True)
            shape = (num_images, 6, width) if config.shared_adaln else (num_images, width)
            condition = torch.empty(shape)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                trace = traced(partial(_one_block, block, x, condition, plan), block)
            sizes.append(trace.saved_bytes)
    # The difference is free of the weights' copies in bf16.
    return sizes[1] - sizes[0]


def _one_block(block: Block, x: Tensor, condition: Tensor, plan: AttentionPlan) -> Tensor:
    out: Tensor = block(x, block.modulation(condition), plan)
    return out
