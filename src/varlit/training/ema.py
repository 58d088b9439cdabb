"""Averaged weights: a second network that follows the trained one."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from varlit.ops.schedules import ema_decay

N = TypeVar("N", bound=nn.Module)


def averaged_copy(network: N) -> N:
    """A frozen copy in eval mode, to be moved by `update_average`."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the network, faster in the first steps; buffers are copied."""
    weight = 1 - ema_decay(decay, step)
    torch._foreach_lerp_(_held_here(average), _held_here(network), weight)
    for target, source in zip(average.buffers(), network.buffers(), strict=True):
        target.copy_(source)


def _held_here(network: nn.Module) -> list[Tensor]:
    """Weights, of sharded ones this process's rows: both networks are sharded alike."""
    return [p.to_local() if isinstance(p, DTensor) else p for p in network.parameters()]
