"""A transformer made ready to draw fast: weights cast or packed once, blocks compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from varlit.models.blocks import Attention, Block
from varlit.models.initialization import shapes_only
from varlit.models.packed_linear import PackedLinear
from varlit.models.var import VAR, CompileMode


def drawing_copy(var: VAR, dtype: torch.dtype | None = None) -> VAR:
    """The same transformer in eval mode, with its matrix products in another precision.

    It computes what autocast would, without casting every weight at every step: linear layers in
    `dtype`; embeddings, the sum of the residuals, norms and the learned scale of attention (which
    sits in an exponent) in fp32. What is not cast shares its memory with the original and follows
    a training in place; casts do not.

    Args:
        var: Left as it is; `.to` on it later does not reach the copy.
        dtype: Such as bfloat16; None casts nothing.
    """
    with shapes_only():
        copy = VAR(var.config, var.tokenizer_config, var.num_classes)
    cast = _linear_weights(copy) if dtype is not None else frozenset()
    weights: dict[str, Tensor] = {
        name: weight.detach().to(dtype) if name in cast else weight.detach()
        for name, weight in var.state_dict().items()
    }
    copy.load_state_dict(weights, assign=True)
    return copy.eval().requires_grad_(False)


def packed_copy(var: VAR) -> VAR:
    """The same transformer in eval mode, with packed weights where most of the time goes.

    Args:
        var: In fp32 on the CPU, left as it is; later changes of its weights do not reach the copy.
    """
    copy = drawing_copy(var)
    for block in copy.layers:
        _pack(block.attention, "qkv", bias=block.attention.qkv_bias())
        _pack(block.attention, "projection")
        _pack(block.mlp, "0", has_gelu=True)
        block.mlp[1] = nn.Identity()
        _pack(block.mlp, "2")
    _pack(copy, "head")
    return copy


def _pack(network: nn.Module, name: str, **more: Any) -> None:
    setattr(network, name, PackedLinear(getattr(network, name), **more))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What the autocast around this call would cast to; None where there is none."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else None


def compile_drawing(var: VAR, mode: CompileMode = "default") -> None:
    """Compile the blocks for drawing, one graph for each step and batch size.

    The first batch of a size compiles, which takes seconds for each step. Training and a pass over
    all tokens stay as they are.

    Args:
        var: Changed in place.
        mode: Of `torch.compile`; `none` makes drawing eager again.
    """
    compiled = None
    if mode != "none":
        compiled = torch.compile(Block.draw, fullgraph=True, dynamic=False, mode=mode)
    for block in var.layers:
        block.compiled_draw = compiled


@contextmanager
def many_graphs(mode: CompileMode) -> Iterator[None]:
    """Allow the compiler a graph for each step of several batch sizes; by itself it stops at 8.

    Args:
        mode: As in `compile_drawing`; `none` needs no compiler, whose import takes seconds.
    """
    if mode == "none":
        yield
        return
    import torch._dynamo.config

    with torch._dynamo.config.patch(recompile_limit=1 << 10, accumulated_recompile_limit=1 << 10):
        yield


def _linear_weights(var: VAR) -> frozenset[str]:
    """Names of the weights that matrix products read, and of what is added to these."""
    names = set()
    for name, module in var.named_modules():
        if isinstance(module, nn.Linear):
            names |= {f"{name}.weight", f"{name}.bias"}
        elif isinstance(module, Attention):
            names |= {f"{name}.q_bias", f"{name}.v_bias"}
    return frozenset(names)
