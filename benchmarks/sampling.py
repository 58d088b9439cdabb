"""Whole samples, from labels to images: plain, our sampling loop, and the compiled one on a GPU.

python benchmarks/sampling.py [--device cuda] [--size d16] [--batch 64] [--out benchmarks/results]

On a GPU all sizes of the paper at batch 1, 64, 128 and 256; what does not fit says so.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.report import device_name
from harness.stopwatch import Lap, NotTimedError, Rival, lap_of
from plain_sampling import PlainSampler
from sampling_limits import IMAGES_PER_S_TARGETS, Limit, limit_of
from var_sizes import SIZES, build_tokenizer, build_var, random_labels

from varlit.generation.random_numbers import ImageSeeds
from varlit.generation.recorded.compiled import open_sampler
from varlit.generation.sampler import SamplingSettings
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

PLAIN, EAGER, FAST = "plain (reference)", "ours, eager", "ours, compiled and in one CUDA graph"
PAPER = tuple(IMAGES_PER_S_TARGETS)
ALL = "all"
LAP_S = 1.0


@dataclass(frozen=True)
class Heat:
    """A size and a batch; its rows race each other."""

    size_name: str
    batch_size: int
    device: torch.device
    is_bf16: bool
    settings: SamplingSettings

    @property
    def name(self) -> str:
        """Size and batch."""
        return f"{self.size_name}, batch {self.batch_size}"

    @property
    def limit(self) -> Limit | None:
        """What the card could do; None where nobody worked it out."""
        if self.device.type != "cuda" or self.size_name not in PAPER:
            return None
        size, card = SIZES[self.size_name], device_name(self.device)
        return limit_of(self.size_name, size, self.batch_size, card)

    def row(self, way: str) -> str:
        """Name of a row."""
        return f"{self.name}: {way}"

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.is_bf16 else nullcontext()


@lru_cache(maxsize=1)
def networks(size_name: str, device: torch.device) -> tuple[VAR, VQVAE]:
    """Transformer and tokenizer of a size; kept until another size is asked for."""
    size = SIZES[size_name]
    var = build_var(size, device).eval().requires_grad_(False)
    return var, build_tokenizer(size, device)


def plain(heat: Heat) -> Lap:
    """Official VAR's way."""
    sampler = PlainSampler(*networks(heat.size_name, heat.device))
    labels, stream = random_labels(heat.batch_size, heat.device), torch.Generator(heat.device)

    def draw() -> None:
        with heat.autocast():
            sampler.draw(labels, heat.settings, stream)

    return lap_of(draw, heat.device)


def ours(heat: Heat, is_fast: bool) -> Lap:
    """Our loop with weights that are cast once, or one graph of all of it."""
    var, tokenizer = networks(heat.size_name, heat.device)
    dtype = torch.bfloat16 if heat.is_bf16 else None
    sampler = open_sampler(var, tokenizer, fast=is_fast, dtype=dtype)
    labels = random_labels(heat.batch_size, heat.device)

    def draw() -> None:
        with heat.autocast():
            sampler.draw(labels, heat.settings, ImageSeeds(range(heat.batch_size)))

    if is_fast:
        with as_recorded():
            draw()
    return lap_of(draw, heat.device)


@contextmanager
def as_recorded() -> Iterator[None]:
    """Refuse to time a sampler under the name of a graph that it could not record.

    Raises:
        NotTimedError: With what it warns of.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a CUDA graph")
        try:
            yield
        except UserWarning as warning:
            raise NotTimedError(str(warning).partition(", so ")[0]) from None


def build_rivals(heat: Heat) -> list[Rival]:
    """Rows of one size and batch."""
    ways: dict[str, Callable[[Heat], Lap]] = {PLAIN: plain, EAGER: partial(ours, is_fast=False)}
    if heat.device.type == "cuda":
        ways[FAST] = partial(ours, is_fast=True)
    return [
        Rival(
            heat.row(way),
            partial(build, heat),
            heat.batch_size,
            "" if way == PLAIN else heat.row(PLAIN),
            is_counted=False,
            group=heat.name,
            extra=beside(heat),
        )
        for way, build in ways.items()
    ]


def beside(heat: Heat) -> dict[str, Callable[[float], str]]:
    """Target and limit of the card: milliseconds at batch 1, else images a second."""
    limit, n = heat.limit, heat.batch_size
    if limit is None:
        return {}

    def told(seconds: float) -> str:
        return f"{seconds * 1e3:.2f} ms" if n == 1 else f"{n / seconds:,.0f}/s"

    cells: dict[str, Callable[[float], str]] = {
        "roofline": lambda _: told(limit.floor_s),
        "of roofline": lambda seconds: f"{limit.floor_s / seconds:.0%}",
    }
    if limit.target_s:
        cells["target"] = lambda _: told(limit.target_s)
    return cells


def batch_sizes(size_name: str, device: torch.device) -> Sequence[int]:
    """Batches of a size."""
    if device.type == "cuda" and size_name in PAPER:
        return (1, 64, 128, 256)
    return sorted({1, SIZES[size_name].batch_size[device.type]})


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time of whole samples.", [*SIZES, ALL])
    parser.add_argument("--cfg_scale", type=float, default=1.5, help="guidance; 0 = none")
    parser.add_argument("--draw", choices=["exact", "sorted"], default="exact", help="tokens")
    args = resolve(parser.parse_args(words), cpu_size="photos64", cuda_size=ALL)
    names = PAPER if args.size == ALL else (args.size,)
    settings = SamplingSettings(cfg_scale=args.cfg_scale, draw=args.draw)
    is_bf16 = args.precision == "bf16-mixed"
    heats = [
        Heat(name, n, args.device, is_bf16, settings)
        for name in names
        for n in ([args.batch] if args.batch else batch_sizes(name, args.device))
    ]
    told = {
        "guidance": f"{settings.cfg_scale:g}",
        "top-k": settings.top_k,
        "top-p": settings.top_p,
        "drawing": f"{settings.draw}, in ours",
        "precision": args.precision,
        "rounds": args.rounds,
    }
    notes = ["From labels to images in [-1, 1], the decoder in the same precision."]
    if args.device.type == "cuda":
        notes.append(
            "roofline: bf16 products at 790 TFLOP/s and 3.0 TB/s (H100; 4.3 on H200). At batch 1 "
            "the transformer alone, at larger ones with the decoder. Targets are for an H100."
        )
    rivals = [rival for heat in heats for rival in build_rivals(heat)]
    benchmark = Benchmark(Path(__file__), rivals, told, notes, lap_s=LAP_S, in_one_thread=True)
    return compete(benchmark, args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
