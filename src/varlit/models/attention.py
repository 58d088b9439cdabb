"""Attention over a whole pyramid: one function, three ways to compute it.

The block-causal mask lets a token see its own map and all coarser ones, so a map's queries see a
prefix of the keys. `dense` masks the whole square; `segmented` asks for the last maps one by one,
each over its own prefix and without a mask, which fast kernels want; `flex` skips the empty tiles
by FlexAttention on CUDA. The results are equal within rounding. Where a step is a single token
(raster scan), the mask is the plain causal one, which kernels know: `segmented` lets them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.ops.steps import Steps

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Backend = Literal["dense", "segmented", "flex"]
AttentionChoice = Literal["auto", "dense", "segmented", "flex"]
ATTENTION_CHOICES: tuple[AttentionChoice, ...] = ("auto", "dense", "segmented", "flex")

# A call more costs about as much as two tiles of 128 x 128: its launch, and in the backward pass
# one more sum over the gradients of its keys. At 256 px the best split is then 8 maps and 2 calls
# (0.67 of the dense cells), at 512 px 7 maps and 3 calls (0.66); ten calls gain nothing on a CPU.
CELLS_PER_CALL = 2 * 128 * 128
# Below, FlexAttention's tiles of 128 x 128 skip too little: at 256 px 0.99 of the dense cells.
FLEX_FROM_TOKENS = 1000


@dataclass(frozen=True)
class Segment:
    """Queries that are answered in one call; they see keys before `end` and no others."""

    start: int
    end: int
    is_masked: bool

    @property
    def num_queries(self) -> int:
        """Tokens that ask."""
        return self.end - self.start

    @property
    def cells(self) -> int:
        """Pairs of query and key that are computed, seen or not."""
        return self.num_queries * self.end


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """How the tokens of a pyramid look at each other; built once by `plan_attention`."""

    backend: Backend
    segments: tuple[Segment, ...]
    mask: Tensor | None = None  # boolean (n, n) of the masked segment, True = may attend
    is_causal: bool = False  # one segment, in which a token sees itself and all before it
    blocks: BlockMask | None = None  # flex only
    kernel: Callable[..., Any] | None = None  # flex only

    @property
    def ends(self) -> tuple[int, ...]:
        """How many keys each segment sees."""
        return tuple(segment.end for segment in self.segments)


def attend(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | Tensor | None, scale: float
) -> Tensor:
    """softmax(scale * q k^T) v over what each query may see.

    Args:
        q: Queries (B, heads, L, head_dim).
        k: Keys, in the same form.
        v: Values, in the same form.
        plan: From `plan_attention`; or a boolean mask (L, L), True = may attend; or None, where
            every query sees every key.
        scale: Of the products before the softmax.

    Returns:
        (B, L, heads * head_dim).
    """
    if not isinstance(plan, AttentionPlan):
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=plan, scale=scale)
        return h.transpose(1, 2).flatten(2)
    if plan.kernel is not None:
        return plan.kernel(q, k, v, block_mask=plan.blocks, scale=scale).transpose(1, 2).flatten(2)
    queries = q.split([segment.num_queries for segment in plan.segments], dim=2)
    parts = []
    for segment, query, key, value in zip(
        plan.segments, queries, _prefixes(k, plan.ends), _prefixes(v, plan.ends), strict=True
    ):
        mask = plan.mask if segment.is_masked else None
        part = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=plan.is_causal, scale=scale
        )
        parts.append(part.transpose(1, 2))  # (B, l, heads, head_dim), as the kernels lay it out
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).flatten(2)


def plan_attention(
    steps: Steps, choice: AttentionChoice = "auto", device: torch.device | str = "cpu"
) -> AttentionPlan:
    """Decide how the tokens of an image are attended to, with the masks on `device`.

    Raises:
        UserError: If there is no such choice, or it cannot run on the device.
    """
    device = torch.device(device)
    backend = resolve_backend(steps, choice, device)
    if backend == "segmented" and max(steps.lengths) == 1:
        whole = Segment(0, steps.num_tokens, is_masked=False)
        return AttentionPlan(backend, (whole,), is_causal=True)
    # Made under inference_mode, a mask could never be part of a backward pass.
    with torch.inference_mode(False):
        if backend == "flex":
            return flex_plan(steps, device)
        segments = best_split(steps) if backend == "segmented" else split_after(steps, None)
        mask = None
        if segments[0].is_masked:
            end = segments[0].end
            # Contiguous: a slice would be copied at every call of some kernels.
            mask = steps.block_causal_mask(device)[:end, :end].contiguous()
        return AttentionPlan(backend, segments, mask)


def resolve_backend(steps: Steps, choice: AttentionChoice, device: torch.device) -> Backend:
    """What `choice` means on a device.

    Raises:
        UserError: If there is no such choice, or it cannot run on the device.
    """
    check_choice(choice)
    if choice == "auto":
        # Of a plain causal mask every kernel skips the empty half.
        is_long = steps.num_tokens > FLEX_FROM_TOKENS and max(steps.lengths) > 1
        has_flex = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        return "flex" if is_long and has_flex else "segmented"
    if choice == "flex" and device.type != "cuda":
        raise UserError(
            f"attention `flex` needs a CUDA GPU, and the network is on the {device.type}; take "
            "`segmented` or `auto`"
        )
    return choice


def check_choice(choice: str) -> None:
    """Refuse what is no way to attend.

    Raises:
        UserError: With the names that there are.
    """
    if choice not in ATTENTION_CHOICES:
        known = ", ".join(ATTENTION_CHOICES)
        raise UserError(f"attention must be one of {known}; got `{choice}`")


def best_split(steps: Steps) -> tuple[Segment, ...]:
    """The cheapest split into a masked prefix of maps and single maps, counted in cells."""
    candidates = [split_after(steps, num_maps) for num_maps in range(1, steps.num_steps + 1)]
    return min(
        candidates,
        key=lambda split: sum(segment.cells for segment in split) + CELLS_PER_CALL * len(split),
    )


def split_after(steps: Steps, num_maps: int | None) -> tuple[Segment, ...]:
    """The first `num_maps` maps in one call, every later one in its own; None = all in one."""
    num_maps = steps.num_steps if num_maps is None else num_maps
    ends = [o + n for o, n in zip(steps.offsets, steps.lengths, strict=True)][num_maps - 1 :]
    first = Segment(0, ends[0], is_masked=num_maps > 1)
    return (first, *(Segment(start, end, is_masked=False) for start, end in pairwise(ends)))


def flex_plan(steps: Steps, device: torch.device) -> AttentionPlan:
    """FlexAttention over tiles; compiled at its first call, and on a CPU forward only."""
    # Not at the top: it brings torch's compiler in.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    levels, length = steps.levels(device), steps.num_tokens

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return levels[query] >= levels[key]

    # One pattern for all images and heads; without compiling, or it would cost seconds.
    blocks = create_block_mask(sees, None, None, length, length, device=str(device))
    kernel: Callable[..., Any] = flex_attention
    if device.type == "cuda":
        kernel = compiled_flex()
    return AttentionPlan("flex", split_after(steps, None), blocks=blocks, kernel=kernel)


@lru_cache(maxsize=1)
def compiled_flex() -> Callable[..., Any]:
    """FlexAttention as a kernel of its own, one for each shape."""
    import torch._dynamo.config
    from torch.nn.attention.flex_attention import flex_attention

    # DDP's splitting of graphs refuses FlexAttention, and a single operation needs none.
    torch._dynamo.config.optimize_ddp = False
    return torch.compile(flex_attention, dynamic=False)


def _prefixes(x: Tensor, ends: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The first tokens of (B, heads, L, head_dim), up to each of `ends`."""
    if len(ends) == 1:
        return (x,)
    if torch.compiler.is_compiling():
        return tuple(x[:, :, :end] for end in ends)  # the compiler fuses the padding away
    prefixes: tuple[Tensor, ...] = _Prefixes.apply(x, ends)
    return prefixes


class _Prefixes(torch.autograd.Function):
    """Views whose gradients are added in place; autograd would pad each with zeros first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.ends = ends
        return tuple(x[:, :, :end] for end in ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[-1].clone()  # the last segment sees all keys
        for end, gradient in zip(ctx.ends[:-1], gradients[:-1], strict=True):
            total[:, :, :end] += gradient
        return total, None
