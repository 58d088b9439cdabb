"""Transformer pieces of VAR: adaptive layer norm, attention with a static cache, MLP."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from varlit.models.attention import AttentionPlan, attend
from varlit.models.config import VARConfig
from varlit.models.packed_linear import PackedLinear

NORM_EPS = 1e-6
MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class Modulation:
    """What the class says to one block: gates, scales and shifts, each (B, 1, C).

    A scale of 0 means a factor of 1 in the chunks; `with_factors` has added it. The order of the
    fields is the order of the six chunks in official checkpoints.
    """

    gate_attention: Tensor
    gate_mlp: Tensor
    scale_attention: Tensor
    scale_mlp: Tensor
    shift_attention: Tensor
    shift_mlp: Tensor

    @classmethod
    def from_chunks(cls, chunks: Tensor) -> Modulation:
        """Split (B, 6, C)."""
        return cls(*chunks.unsqueeze(2).unbind(1))

    def with_factors(self) -> Modulation:
        """Scales as `modulate` takes them; done once for all steps of an image."""
        return replace(self, scale_attention=self.scale_attention + 1, scale_mlp=self.scale_mlp + 1)

    def rows(self, index: Tensor) -> Modulation:
        """Those of some rows of the batch."""
        return Modulation(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass
class KeyValueCache:
    """Keys and values of one block, allocated once and written in place."""

    keys: Tensor  # (B, heads, L, head_dim)
    values: Tensor  # (B, heads, L, head_dim)
    filled: int = 0
    qkv_bias: Tensor | None = None  # `Attention.qkv_bias`, joined once for all steps

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens and return everything that is filled."""
        start, self.filled = self.filled, self.filled + keys.shape[2]
        self.keys[:, :, start : self.filled] = keys
        self.values[:, :, start : self.filled] = values
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


def modulate(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without parameters, then the class's factor and shift.  # (B, L, C)"""
    normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift, normed, factor)


class DropPath(nn.Module):
    """Drop the residual branch of whole samples while training (Huang et al. 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero or rescale each sample of (B, ...)."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        shape = (len(x),) + (1,) * (x.dim() - 1)
        # In fp32: bf16 would round 1 / keep the same way for every sample.
        factor = x.new_empty(shape, dtype=torch.float32).bernoulli_(keep).div_(keep)
        return (x * factor).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, by default with unit-length queries and keys."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        width, self.num_heads = config.resolved_width, config.resolved_heads
        self.qk_l2_norm = config.qk_l2_norm
        # Without the l2 norm the official scale is 0.25 / sqrt(head_dim), not 1 / sqrt(head_dim).
        self.softmax_scale = 1.0 if self.qk_l2_norm else 0.25 / math.sqrt(config.head_dim)
        if self.qk_l2_norm:
            initial = torch.full((1, self.num_heads, 1, 1), math.log(4.0))
            self.log_scale = nn.Parameter(initial)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.projection = nn.Linear(width, width)

    def qkv_bias(self) -> Tensor:
        """Keys carry none (it would cancel in the softmax): zeros in its place.  # (3C,)"""
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan | Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend within (B, L, C), or from new tokens to all cached ones.

        Args:
            x: Tokens of all scales (training) or of one scale (sampling).
            plan: From `plan_attention`, or a boolean mask (L, L), True = may attend; None when
                the cache holds the past only.
            cache: Written in place when given.
        """
        q, k, v = (
            self._project_in(x, None if cache is None else cache.qkv_bias)
            .unflatten(2, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        if self.qk_l2_norm:
            if cache is not None:
                # As autocast does, also where the weights themselves are in half precision.
                q, k = q.float(), k.float()
            q = F.normalize(q, dim=-1) * self.log_scale.clamp(max=MAX_LOG_SCALE).exp()
            k = F.normalize(k, dim=-1)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.projection(attend(q, k, v, plan, self.softmax_scale))

    def _project_in(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.qkv, PackedLinear):
            out: Tensor = self.qkv(x)  # with its bias
            return out
        return F.linear(x, self.qkv.weight, self.qkv_bias() if bias is None else bias)


class MLP(nn.Sequential):
    """Linear, GELU (tanh), linear.  # (B, L, C) -> (B, L, C)"""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )


class Block(nn.Module):
    """Transformer block whose norms are steered by the class (AdaLN, Peebles & Xie 2023).

    `compiled` and `is_checkpointed` say how a training pass runs, not what it computes; `VAR` sets
    them. `compiled_draw` says the same of drawing, see `varlit.models.drawing_copy`.
    """

    compiled_draw: Callable[[Block, Tensor, Modulation, KeyValueCache], Tensor] | None
    compiled: Callable[[Block, Tensor, Modulation, AttentionPlan | Tensor | None], Tensor] | None
    is_checkpointed: bool

    def __init__(self, config: VARConfig, drop_path: float) -> None:
        super().__init__()
        width = config.resolved_width
        self.attention = Attention(config)
        self.mlp = MLP(width, round(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)
        if config.shared_adaln:
            self.adaln_offset = nn.Parameter(torch.randn(1, 6, width) / math.sqrt(width))
        else:
            self.adaln = nn.Linear(width, 6 * width)
        self.compiled, self.is_checkpointed = None, False
        self.compiled_draw = None

    def modulation(self, condition: Tensor) -> Modulation:
        """Read the class once; every scale of an image shares the result.

        Stochastic depth closes gates here: on (B, 1, C) it costs nothing, and what is left of the
        block draws no random numbers, so that it can be compiled and computed again.

        Args:
            condition: SiLU of the class embedding (B, C), or the shared projection (B, 6, C).
        """
        if hasattr(self, "adaln"):
            m = Modulation.from_chunks(self.adaln(condition).unflatten(1, (6, -1)))
        else:
            m = Modulation.from_chunks(condition + self.adaln_offset)
        m = m.with_factors()
        # In one layout whether or not a block drops: compiled code is made for a layout.
        return replace(
            m,
            gate_attention=self.drop_path(m.gate_attention).contiguous(),
            gate_mlp=self.drop_path(m.gate_mlp).contiguous(),
        )

    def forward(
        self,
        x: Tensor,
        m: Modulation | Tensor,
        plan: AttentionPlan | Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, L, C) -> (B, L, C).

        Args:
            x: Tokens.
            m: From `modulation`, or the condition that it reads.
            plan: See `Attention`.
            cache: Written in place when given.
        """
        if isinstance(m, Tensor):
            m = self.modulation(m)
        if cache is not None and self.compiled_draw is not None:
            return self.compiled_draw(self, x, m, cache)
        if cache is not None or not self.training:
            return self.transform(x, m, plan, cache)
        run = Block.transform if self.compiled is None else self.compiled
        if self.is_checkpointed and torch.is_grad_enabled():
            # Nothing random inside, so there is no random state to keep.
            out: Tensor = checkpoint(
                run, self, x, m, plan, use_reentrant=False, preserve_rng_state=False
            )
            return out
        return run(self, x, m, plan)

    def transform(
        self,
        x: Tensor,
        m: Modulation,
        plan: AttentionPlan | Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The arithmetic of the block, the same code for all blocks."""
        # The sum of the residuals may be wider than the weights: fp32 over bf16 when drawing.
        dtype = self.attention.q_bias.dtype
        seen = modulate(x, m.scale_attention, m.shift_attention).to(dtype)
        x = x + self.attention(seen, plan, cache) * m.gate_attention
        seen = modulate(x, m.scale_mlp, m.shift_mlp).to(dtype)
        return x + self.mlp(seen) * m.gate_mlp

    def draw(self, x: Tensor, m: Modulation, cache: KeyValueCache) -> Tensor:
        """`transform` of one step's tokens after a cache.

        A function of its own, because torch's compiler counts what it makes by function: a graph
        for each step here shall not use up those that training may have.
        """
        return self.transform(x, m, cache=cache)
