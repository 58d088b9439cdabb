"""What makes a step of stage 2 fast, each by itself: attention, cached tokens, loss, AdaLN.

python benchmarks/var_parts.py [--device cuda] [--size d16] [--out benchmarks/results]
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.stopwatch import Rival
from torch import Tensor, nn
from torch.nn import functional as F
from var_adaln import AdaLNs, adaln_rivals
from var_rows import assert_same, row
from var_sizes import (
    SEED,
    SIZES,
    Size,
    at_depth,
    build_tokenizer,
    build_var,
    random_batch_of_images,
    random_labels,
    random_tokens,
)

from varlit.losses.next_scale import next_scale_loss
from varlit.models.attention import AttentionPlan, Backend, attend, plan_attention

FORWARD, BOTH = "attention forward", "attention forward, backward"
DENSE = "dense mask (reference)"
TEACHER = "teacher inputs from tokens"
TOKENISING = "tokenising (reference)"
CACHED = "cached tokens"
HEAD_OFFICIAL = "head, loss: fp32 logits, accuracy in each step (reference)"
HEAD_PLAIN = "head, loss: F.cross_entropy"
HEAD_OURS = "head, loss: in chunks (ours)"


def attention_row(way: str, backend: Backend) -> str:
    """Name of a row of attention."""
    return f"{way}: {DENSE if backend == 'dense' else backend}"


def depth_row(depth: int, way: str) -> str:
    """Name of a row of forward and backward pass at a depth."""
    return f"d{depth} forward, backward: {way}"


class Parts:
    """What flows into each part of a step; networks are built when a row asks for them."""

    def __init__(self, size: Size, batch_size: int, device: torch.device, precision: str) -> None:
        self.size, self.batch_size, self.device = size, batch_size, device
        self.is_bf16 = precision == "bf16-mixed"
        self.labels = random_labels(batch_size, device)
        self.tokens = random_tokens(size, batch_size, device)
        self.var_at = cache(lambda depth: build_var(at_depth(size, depth), device))
        self.tokenizer = cache(lambda: build_tokenizer(size, device))
        self.images = cache(lambda: random_batch_of_images(size, batch_size, device))
        self.qkv = cache(self._qkv)
        self.head = cache(self._head)

    def autocast(self) -> torch.autocast:
        """The precision that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)

    def attend(self, plan: AttentionPlan, with_backward: bool) -> Tensor:
        """One block's attention over the whole pyramid."""
        with torch.set_grad_enabled(with_backward):
            out = attend(*self.qkv(), plan, scale=1.0)
        if with_backward:
            torch.autograd.grad(out, self.qkv(), out.detach())
        return out.detach()

    def learn(self, depth: int, tokenises: bool) -> None:
        """Forward and backward pass, on tokens at hand or of images."""
        var, tokenizer, tokens = self.var_at(depth), self.tokenizer(), self.tokens
        if tokenises:
            with torch.no_grad():
                # In fp32, convolutions in TF32 where torch takes it: as official VAR.
                tokens = tokenizer.quantizer.encode(tokenizer.features(self.images()))
        var.zero_grad(set_to_none=True)
        with self.autocast():
            logits = var(self.labels, tokenizer.teacher_inputs(tokens))
        next_scale_loss(logits, tokens, var.scales).loss.backward()

    def head_and_loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """From the last block's output to the gradients of the head."""
        linear, x = self.head()
        with self.autocast():
            logits = linear(x)
        value = loss(logits, self.tokens)
        torch.autograd.grad(value, [x, *linear.parameters()])
        return value.detach()

    def _qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        config, num_tokens = self.size.var, self.size.scales.num_tokens
        shape = (3, self.batch_size, num_tokens, config.resolved_heads, config.head_dim)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        dtype = torch.bfloat16 if self.is_bf16 else torch.float32
        # Queries of length 4, keys of length 1, as they are when training begins.
        drawn = F.normalize(drawn, dim=-1) * torch.tensor([4.0, 1.0, 1.0]).view(3, 1, 1, 1, 1)
        q, k, v = drawn.to(self.device, dtype).transpose(2, 3).unbind()
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()

    def _head(self) -> tuple[nn.Linear, Tensor]:
        torch.manual_seed(SEED)
        width = self.size.var.resolved_width
        linear = nn.Linear(width, self.size.tokenizer.codebook_size).to(self.device)
        x = torch.randn(*self.tokens.shape, width).to(self.device)
        return linear, x.requires_grad_()


def official_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """An fp32 copy of all logits, and the accuracy whether or not it is logged."""
    logits = logits.float()
    (logits.detach().argmax(dim=-1) == tokens).float().mean()
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def plain_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """The same without the accuracy."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def build_rivals(parts: Parts) -> list[Rival]:
    """Rows of the table."""
    return [
        *attention_rivals(parts),
        *depth_rivals(parts),
        *head_rivals(parts),
        *adaln_rivals(AdaLNs(parts.size, parts.batch_size, parts.device, parts.autocast)),
    ]


def attention_rivals(parts: Parts) -> list[Rival]:
    """One block's attention, each way to compute it."""
    backends: list[Backend] = ["dense", "segmented"]
    if parts.device.type == "cuda":
        backends.append("flex")
    plans = {name: plan_attention(parts.size.scales, name, parts.device) for name in backends}
    rivals = []
    for way, with_backward in ((FORWARD, False), (BOTH, True)):
        reference = attention_row(way, "dense")
        for name, plan in plans.items():

            def check(plan: AttentionPlan = plan) -> None:
                assert_same(parts.attend(plans["dense"], False), parts.attend(plan, False))

            run = partial(parts.attend, plan, with_backward)
            rivals.append(
                row(parts.device, parts.batch_size, attention_row(way, name), run, reference, check)
            )
    return rivals


def depth_rivals(parts: Parts) -> list[Rival]:
    """Cached tokens against tokenising in each step."""
    depths = parts.size.cached_depths or (parts.size.var.depth,)
    rivals = [
        row(
            parts.device,
            parts.batch_size,
            TEACHER,
            lambda: parts.tokenizer().teacher_inputs(parts.tokens),
        )
    ]
    for depth in depths:
        reference = depth_row(depth, TOKENISING)
        for way, tokenises in ((TOKENISING, True), (CACHED, False)):
            run = partial(parts.learn, depth, tokenises)
            rivals.append(
                row(parts.device, parts.batch_size, depth_row(depth, way), run, reference)
            )
    return rivals


def head_rivals(parts: Parts) -> list[Rival]:
    """Output projection and cross entropy, forward and backward."""

    def ours(logits: Tensor, tokens: Tensor) -> Tensor:
        return next_scale_loss(logits, tokens, parts.size.scales).loss

    def check() -> None:
        assert_same(parts.head_and_loss(plain_loss), parts.head_and_loss(ours))

    ways = {HEAD_OFFICIAL: official_loss, HEAD_PLAIN: plain_loss, HEAD_OURS: ours}
    return [
        row(
            parts.device,
            parts.batch_size,
            name,
            partial(parts.head_and_loss, loss),
            HEAD_OFFICIAL,
            check,
        )
        for name, loss in ways.items()
    ]


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time of the parts of a training step of stage 2.", list(SIZES))
    args = resolve(parser.parse_args(words), cpu_size="d16", cuda_size="d16")
    size = SIZES[args.size]
    batch_size = args.batch or size.batch_size[args.device.type]
    parts = Parts(size, batch_size, args.device, args.precision)
    settings = {
        "size": args.size,
        "image": f"{size.tokenizer.image_size} px",
        "tokens": size.scales.num_tokens,
        "batch": batch_size,
        "precision": args.precision,
        "rounds": args.rounds,
    }
    notes = [
        "Targets: segmented attention at 256 px on a CPU 1.3x forward, 1.15x with backward.",
        "The stack made before is no way to train the weights that checkpoints hold: a limit.",
    ]
    benchmark = Benchmark(Path(__file__), build_rivals(parts), settings, notes)
    return compete(benchmark, args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
