"""Initial weights of VAR, as the official code sets them, without touching torch's classes.

And networks without any: their shapes are enough where weights come from a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks made here have shapes and no values, and cost nothing.

    Fill one with `load_state_dict(weights, assign=True)`.
    """
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Skip the drawing of initial values: on the meta device it would import dynamo, seconds."""

    RANDOM = frozenset(("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
