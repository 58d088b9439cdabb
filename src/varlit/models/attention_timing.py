"""Which way to attend is the fastest on this device, at this shape: tried out in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from varlit.models.attention import AttentionPlan, Backend, attend, plan_attention
from varlit.models.device_clock import seconds_of
from varlit.ops.steps import Steps

WARMUP_RUNS = 3  # the first compiles, and chooses kernels


@dataclass(frozen=True)
class AttentionShape:
    """What attention costs depends on."""

    steps: Steps
    batch_size: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class AttentionTiming:
    """One way to attend, for one block."""

    backend: Backend
    forward_s: float
    both_s: float
    """Seconds of forward and backward pass."""


def measure_attention(
    shape: AttentionShape, device: torch.device | str, rounds: int = 5
) -> tuple[AttentionTiming, ...]:
    """Time every way that the device can attend, in turn, and take each one's least.

    Two runs may choose differently where two ways are close, and so differ by rounding: a run
    that must repeat bit for bit names its way instead. On several GPUs one process decides.

    Args:
        shape: What one block attends to.
        device: Where.
        rounds: Times that each is run after warming up.

    Returns:
        The fastest forward and backward first; `attention_table` prints it.
    """
    device = torch.device(device)
    backends: list[Backend] = ["dense", "segmented"]
    if device.type == "cuda":
        backends.append("flex")
    plans = {name: plan_attention(shape.steps, name, device) for name in backends}
    inputs = _inputs(shape, device)
    forward: dict[Backend, list[float]] = {name: [] for name in backends}
    both: dict[Backend, list[float]] = {name: [] for name in backends}
    for round_index in range(-WARMUP_RUNS, rounds):
        for name, plan in plans.items():
            forward_s = seconds_of(partial(_forward, inputs, plan), device)
            both_s = seconds_of(partial(_both, inputs, plan), device)
            if round_index >= 0:
                forward[name].append(forward_s)
                both[name].append(both_s)
    timings = [AttentionTiming(name, min(forward[name]), min(both[name])) for name in backends]
    return tuple(sorted(timings, key=lambda timing: timing.both_s))


def attention_table(timings: tuple[AttentionTiming, ...]) -> str:
    """A line for each way, fastest first, with its gain over `dense`."""
    dense = next(timing for timing in timings if timing.backend == "dense")
    return "\n".join(
        f"{timing.backend:10} forward {timing.forward_s * 1e3:8.3f} ms "
        f"({dense.forward_s / timing.forward_s:.2f}x dense), "
        f"with backward {timing.both_s * 1e3:8.3f} ms ({dense.both_s / timing.both_s:.2f}x)"
        for timing in timings
    )


def _inputs(shape: AttentionShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in the layout of a block, with gradients."""
    size = shape.batch_size, shape.steps.num_tokens, shape.num_heads, shape.head_dim
    generator = torch.Generator(device).manual_seed(0)
    with torch.inference_mode(False):
        q, k, v = (
            torch.randn(size, generator=generator, device=device).to(shape.dtype).transpose(1, 2)
            for _ in range(3)
        )
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@torch.no_grad()
def _forward(inputs: tuple[Tensor, Tensor, Tensor], plan: AttentionPlan) -> None:
    attend(*inputs, plan, scale=1.0)


def _both(inputs: tuple[Tensor, Tensor, Tensor], plan: AttentionPlan) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        out = attend(*inputs, plan, scale=1.0)
        torch.autograd.grad(out, inputs, grad_outputs=torch.ones_like(out))
