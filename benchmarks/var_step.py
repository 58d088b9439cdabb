"""A training step of stage 2: ours on cached tokens against a plain one that tokenises.

python benchmarks/var_step.py [--device cuda] [--size d30] [--out benchmarks/results]
"""

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.roofline import measured_tflops
from harness.stopwatch import Lap, Rival, lap_of
from torch.nn import functional as F
from var_sizes import (
    SIZES,
    Size,
    build_tokenizer,
    build_var,
    random_batch_of_images,
    random_labels,
    random_tokens,
)

from varlit.losses.next_scale import next_scale_loss
from varlit.models.attention import AttentionChoice
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.var import Checkpointing, CompileMode
from varlit.models.vqvae import VQVAE
from varlit.training.optim import OptimConfig, build_adamw

PLAIN = "plain: dense mask, tokenises (reference)"
PLAIN_CACHED = "plain, on cached tokens"
EAGER = "ours, eager"
COMPILED = "ours, compiled"
CHECKPOINTED = "ours, compiled, checkpointed"
LAP_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How the network computes in a row."""

    attention: AttentionChoice = "auto"
    compile: CompileMode = "none"
    checkpointing: Checkpointing = "none"


class Shared(Generic[T]):
    """Something large that all rows use at once, and that goes with the last of them."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.make, self.alive = make, lambda: None

    def get(self) -> T:
        """The one that somebody still holds, else a new one."""
        found = self.alive()
        if found is None:
            found = self.make()
            self.alive = weakref.ref(found)
        return found


class Learner:
    """A transformer, its optimizer and a batch; rows take turns at training it."""

    def __init__(self, size: Size, batch_size: int, device: torch.device, precision: str) -> None:
        self.device, self.is_bf16 = device, precision == "bf16-mixed"
        self.config = OptimConfig(lr=1e-6)  # so small that no row meets other weights
        self.network = build_var(size, device)
        self.optimizer = build_adamw(self.network, self.config)
        self.labels = random_labels(batch_size, device)
        self.tokens = random_tokens(size, batch_size, device)
        self.images = random_batch_of_images(size, batch_size, device)

    def set_up(self, settings: Settings) -> None:
        """Let the network compute in one of the ways."""
        self.network.use_attention(settings.attention)
        self.network.checkpoint_activations = settings.checkpointing
        self.network.compile_blocks(settings.compile)

    def autocast(self) -> torch.autocast:
        """The precision that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)

    def step(self, quantizer: MultiScaleQuantizer) -> None:
        """Ours, as `VARModule` does between two log steps; of the tokenizer codes and phi do."""
        inputs = quantizer.teacher_inputs(self.tokens)
        with self.autocast():
            logits = self.network(self.labels, inputs)
        terms = next_scale_loss(logits, self.tokens, self.network.scales)
        del logits
        self._learn(terms.loss)

    def plain_step(self, tokenizer: VQVAE, tokenises: bool) -> None:
        """What public trainers do: tokens, accuracy and the norm's value in every step."""
        tokens = self.tokens
        if tokenises:
            with torch.no_grad():
                # In fp32, convolutions in TF32 where torch takes it: as official VAR.
                tokens = tokenizer.quantizer.encode(tokenizer.features(self.images))
        inputs = tokenizer.teacher_inputs(tokens)
        with self.autocast():
            logits = self.network(self.labels, inputs).float()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        accuracy = (logits.detach().argmax(dim=-1) == tokens).float().mean()
        del logits
        norm = self._learn(loss)
        assert 0 <= accuracy.item() <= 1
        assert norm.item() > 0

    def _learn(self, loss: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        weights = self.network.parameters()
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.grad_clip)
        self.optimizer.step()
        return norm


def build_rivals(size: Size, batch_size: int, device: torch.device, precision: str) -> list[Rival]:
    """Rows of the table; nothing is built before it is run."""
    learners = Shared(lambda: Learner(size, batch_size, device, precision))
    tokenizers = Shared(lambda: build_tokenizer(size, device))
    quantizers = Shared(lambda: build_tokenizer(size, device).quantizer)

    def plain(tokenises: bool) -> Lap:
        learner, tokenizer = learners.get(), tokenizers.get()
        step = partial(learner.plain_step, tokenizer, tokenises)
        return in_its_way(learner, Settings("dense"), lap_of(step, device))

    def ours(settings: Settings) -> Lap:
        learner, quantizer = learners.get(), quantizers.get()
        return in_its_way(learner, settings, lap_of(partial(learner.step, quantizer), device))

    builders = {
        PLAIN: partial(plain, tokenises=True),
        PLAIN_CACHED: partial(plain, tokenises=False),
        EAGER: partial(ours, Settings()),
    }
    if device.type == "cuda":
        compiled = Settings(compile="default")
        builders[COMPILED] = partial(ours, compiled)
        builders[CHECKPOINTED] = partial(ours, replace(compiled, checkpointing="blocks"))
    flops = size.costs.training
    return [
        Rival(name, build, batch_size, "" if name == PLAIN else PLAIN, flops_per_image=flops)
        for name, build in builders.items()
    ]


def in_its_way(learner: Learner, settings: Settings, lap: Lap) -> Lap:
    """A lap before which the network, which all rows share, is set up."""

    def run(num_runs: int) -> float:
        learner.set_up(settings)
        return lap(num_runs)

    return run


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time and memory of a training step of stage 2.", list(SIZES))
    parsed = parser.parse_args(words)
    is_given = parsed.peak_tflops is not None
    args = resolve(parsed, cpu_size="d4", cuda_size="d16")
    size = SIZES[args.size]
    batch_size = args.batch or size.batch_size[args.device.type]
    notes = [
        "GFLOP/image: forward and backward of the transformer alone, by formula, over the pairs "
        "that the mask allows, whatever a row really computes."
    ]
    if args.device.type == "cuda" and args.precision == "bf16-mixed" and not is_given:
        args.peak_tflops = round(measured_tflops(args.device), 1)
        notes.append("The peak is that of an 8192 x 8192 bf16 product, measured before the rows.")
    if size.target_images_per_s:
        notes.append(
            f"Targets on an H100: {size.target_images_per_s:g} images/s compiled"
            + (", and 2.5x the plain reference." if args.size == "d16" else ".")
        )
    settings = {
        "size": args.size,
        "image": f"{size.tokenizer.image_size} px",
        "tokens": size.scales.num_tokens,
        "batch": batch_size,
        "precision": args.precision,
        "rounds": args.rounds,
    }
    rivals = build_rivals(size, batch_size, args.device, args.precision)
    benchmark = Benchmark(Path(__file__), rivals, settings, notes, with_memory=True, lap_s=LAP_S)
    return compete(benchmark, args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
