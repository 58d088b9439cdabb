"""What a batch of images carries from step to step while it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlit.models.blocks import Block, KeyValueCache, Modulation


@dataclass(frozen=True)
class ClassSignals:
    """What classes say to the transformer; the same at every step of an image.

    That of all classes is a table: AdaLN is computed once, then a batch gathers its rows.
    """

    start: Tensor  # class embedding (B, C)
    modulations: list[Modulation]  # of each block
    head: tuple[Tensor, Tensor]  # factor and shift before the output projection, (B, 1, C)

    def rows(self, labels: Tensor) -> ClassSignals:
        """Those of a batch of labels (B,), where self is the table of all classes."""
        factor, shift = self.head
        modulations = [m.rows(labels) for m in self.modulations]
        return ClassSignals(self.start[labels], modulations, (factor[labels], shift[labels]))


@dataclass
class SamplingState:
    """Everything that one batch of images carries from step to step."""

    signals: ClassSignals
    caches: list[KeyValueCache]
    step: int = 0


def open_caches(
    layers: Sequence[Block], shape: tuple[int, int, int, int], dtype: torch.dtype
) -> list[KeyValueCache]:
    """Room for the keys and values of whole images, for each block.

    Args:
        layers: The blocks; their joined biases are kept with the cache.
        shape: (B, heads, L, head_dim).
        dtype: Of keys and values.
    """
    caches = []
    for block in layers:
        bias = block.attention.qkv_bias()
        keys, values = (torch.empty(shape, dtype=dtype, device=bias.device) for _ in range(2))
        caches.append(KeyValueCache(keys, values, qkv_bias=bias))
    return caches
