"""Initial weights of VAR, as the official code sets them, without touching torch's classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from varlit.models.var import VAR

ADALN_INIT = 0.5


@torch.no_grad()
def initialize_var(model: VAR) -> None:
    """Normal weights of deviation sqrt(1 / 3C), small head, small gates, scaled residuals."""
    width, depth = model.config.resolved_width, model.config.depth
    std = math.sqrt(1 / (3 * width))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.start_position, std=std)
    nn.init.trunc_normal_(model.position, std=std)
    model.head.weight.mul_(model.config.head_init)
    model.head_adaln.weight.mul_(ADALN_INIT)
    for block in model.layers:
        block.attention.projection.weight.div_(math.sqrt(2 * depth))
        block.mlp[-1].weight.div_(math.sqrt(2 * depth))  # type: ignore[operator]
        shared = model.config.shared_adaln
        rows = block.adaln_offset[0] if shared else block.adaln.weight.unflatten(0, (6, -1))
        # The first two of the six chunks are the residual gates; near zero, blocks start silent.
        rows[:2].mul_(model.config.gamma_init)
        rows[2:].mul_(ADALN_INIT)
