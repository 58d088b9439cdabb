"""Linear layers for drawing on a CPU: weights laid out once for oneDNN's matrix products.

`F.linear` hands a row-major matrix to the BLAS at each call, which packs it anew every time; that
is dear where few rows meet it, as at the coarse scales and in a raster scan. Inductor does the
same as this when it freezes a graph. Products differ from `F.linear` by roundings.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from varlit.models.var import VAR

MAX_SHARE_OF_MEMORY = 0.25
"""Packed weights stand beside the original ones, which training and saving still need."""
MIN_WIDTH = 256
"""The product costs some 30 us a call to begin with: at width 64 it loses (benchmarks/results)."""


class PackedLinear(nn.Module):
    """A linear layer, and GELU (tanh) after it, as it was when this was made.

    Args:
        linear: On the CPU, in fp32.
        bias: In place of its own.
        has_gelu: Whether GELU follows, in the same pass.
    """

    def __init__(
        self, linear: nn.Linear, bias: Tensor | None = None, has_gelu: bool = False
    ) -> None:
        super().__init__()
        own = linear.bias.detach() if linear.bias is not None else None
        self.bias = own if bias is None else bias.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.after, self.kind = ("gelu", "tanh") if has_gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        """Project.  # (..., C_in) -> (..., C_out)"""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.after, [], self.kind
        )
        return out


def can_pack(var: VAR) -> bool:
    """Whether this machine has the packed product, memory for the weights twice, and it pays.

    The same on a machine every time, so that the same seed draws the same tokens there.

    Args:
        var: In fp32 on the CPU, or it cannot.
    """
    weights = list(var.parameters())
    if not has_packed_product() or var.config.resolved_width < MIN_WIDTH:
        return False
    if any(w.device.type != "cpu" or w.dtype != torch.float32 for w in weights):
        return False
    num_bytes = sum(w.numel() * w.element_size() for w in weights)
    return num_bytes <= MAX_SHARE_OF_MEMORY * _memory_bytes()


def has_packed_product() -> bool:
    """Whether torch has it here; on other processors than x86 nobody has measured it."""
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    has_it = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return is_x86 and has_it and torch.backends.mkldnn.is_available()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
