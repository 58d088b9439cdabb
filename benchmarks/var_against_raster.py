"""Next-scale prediction against raster scan: one transformer, our sampling loop, and a plain one.

python benchmarks/var_against_raster.py [--device cuda] [--size paper] [--out benchmarks/results]

Both end at a finest map of 16x16 tokens (256 px). VAR draws 680 tokens in 10 steps, the raster scan
256 in 256, so it counts fewer operations and takes more steps.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.stopwatch import Lap, Rival, lap_of
from plain_sampling import PlainSampler
from torch import Tensor
from var_sizes import SEED, SIZES, Size, build_tokenizer, build_var, random_labels

from varlit.generation.random_numbers import ImageSeeds
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.models.config import VARConfig
from varlit.models.drawing_copy import packed_copy
from varlit.models.packed_linear import can_pack

TRANSFORMER, WHOLE = "transformer", "with drawing"
PLAIN, REFERENCE = ", plain sampler (reference)", " (reference)"
TOP_K, TOP_P, GUIDANCE = 900, 0.96, 1.5  # as official VAR is evaluated


@dataclass(frozen=True)
class Meeting:
    """A shape of transformer at a batch size, in both orders."""

    next_scale: Size
    batch_size: int
    is_guided: bool = True

    @property
    def raster(self) -> Size:
        """The same transformer over the finest map alone."""
        tokenizer, var = self.next_scale.tokenizer, self.next_scale.var
        return replace(
            self.next_scale,
            var=replace(var, order="raster"),
            tokenizer=replace(tokenizer, scales=tokenizer.scales[-1:]),
        )

    @property
    def name(self) -> str:
        """Width, depth, batch and guidance."""
        var, guided = self.next_scale.var, "guided" if self.is_guided else "unguided"
        width = var.resolved_width
        return f"width {width}, depth {var.depth}, batch {self.batch_size}, {guided}"

    def row(self, what: str, is_raster: bool) -> str:
        """Name of a row."""
        return f"{self.name}, {what}: {'raster' if is_raster else 'VAR'}"

    def reference(self, what: str) -> str:
        """Name of the row that others of its kind are held against."""
        return self.row(what, is_raster=True) + (PLAIN if what == WHOLE else REFERENCE)

    @property
    def settings(self) -> SamplingSettings:
        """How both draw."""
        return SamplingSettings(GUIDANCE if self.is_guided else 0.0, TOP_K, TOP_P)


def _shaped(width: int, depth: int) -> Size:
    return Size(VARConfig(depth=depth, width=width, num_heads=max(width // 64, 1)))


MEETINGS = {
    "tiny": [Meeting(SIZES["tiny"], 2), Meeting(SIZES["tiny"], 2, is_guided=False)],
    # A core of a CPU is busy with VAR's operations, of which there are more; only where blocks are
    # narrow does it wait for the next call, as a card does at all widths.
    "small": [
        Meeting(_shaped(width, depth), batch_size, is_guided)
        for width, depth, batch_size, is_guided in (
            (1024, 2, 1, False),
            (1024, 2, 1, True),
            (256, 8, 1, False),
            (256, 8, 1, True),
            (256, 8, 4, True),
            (64, 16, 1, False),
            (64, 16, 1, True),
        )
    ],
    "paper": [Meeting(SIZES[name], n) for name in ("d16", "d24") for n in (1, 64)],
}


class Drawer:
    """A transformer in one of the orders, and a batch to draw."""

    def __init__(self, size: Size, meeting: Meeting, device: torch.device, is_bf16: bool) -> None:
        self.device, self.is_bf16, self.settings = device, is_bf16, meeting.settings
        self.batch_size = meeting.batch_size
        var, tokenizer = build_var(size, device), build_tokenizer(size, device)
        self.plain = PlainSampler(var.eval().requires_grad_(False), tokenizer)
        is_packed = not is_bf16 and can_pack(var)  # as `open_sampler` does
        self.var = packed_copy(var) if is_packed else var
        self.sampler = Sampler(self.var, tokenizer)
        self.labels = random_labels(self.batch_size, device)
        self.inputs = list(self._inputs())

    @torch.no_grad()
    def run_transformer(self) -> None:
        """All steps on inputs at hand."""
        with self._autocast():
            state = self.var.begin(self.labels.repeat(self._rows_per_image))
            for step_input in self.inputs:
                self.var.advance(state, step_input)

    def run_whole(self) -> None:
        """The sampling loop, without decoding."""
        with self._autocast():
            seeds = ImageSeeds(range(self.batch_size))
            for _ in self.sampler.steps(self.labels, self.settings, seeds):
                pass

    def run_plainly(self) -> None:
        """The whole raster scan by a plain sampler: two rows an image, guided or not."""
        with self._autocast():
            stream = torch.Generator(self.device).manual_seed(SEED)
            self.plain.draw_raster(self.labels, self.settings, stream)

    @property
    def _rows_per_image(self) -> int:
        return 2 if self.settings.is_guided else 1

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)

    def _inputs(self) -> Iterator[Tensor | None]:
        generator = torch.Generator().manual_seed(SEED)
        yield None
        for length in self.var.steps.lengths[1:]:
            num_rows = self._rows_per_image * self.batch_size
            shape = (num_rows, length, self.var.tokenizer_config.codebook_dim)
            yield torch.randn(shape, generator=generator).to(self.device)


def build_rivals(meeting: Meeting, device: torch.device, is_bf16: bool) -> list[Rival]:
    """Rows of one shape and batch size."""
    raster, ours = meeting.raster, meeting.next_scale
    runs: list[tuple[str, Size, Callable[[Drawer], None], str]] = [
        (meeting.reference(TRANSFORMER), raster, Drawer.run_transformer, ""),
        (meeting.row(TRANSFORMER, False), ours, Drawer.run_transformer, TRANSFORMER),
        (meeting.reference(WHOLE), raster, Drawer.run_plainly, ""),
        (meeting.row(WHOLE, True) + ", our sampler", raster, Drawer.run_whole, WHOLE),
        (meeting.row(WHOLE, False) + ", our sampler", ours, Drawer.run_whole, WHOLE),
    ]

    def build(size: Size, run: Callable[[Drawer], None]) -> Lap:
        return lap_of(partial(run, Drawer(size, meeting, device, is_bf16)), device)

    return [
        Rival(
            name,
            partial(build, size, run),
            meeting.batch_size,
            meeting.reference(against) if against else "",
            is_counted=False,
            group=meeting.name,
            extra=told(size, meeting.is_guided),
        )
        for name, size, run, against in runs
    ]


def told(size: Size, is_guided: bool) -> dict[str, Callable[[float], str]]:
    """Steps, tokens and operations of an image, the last by formula."""
    gflop = size.costs.sampling(is_guided) / 1e9
    return {
        "steps": lambda _: str(size.steps.num_steps),
        "tokens": lambda _: str(size.steps.num_tokens),
        "GFLOP by formula": lambda _: f"{gflop:#.3g}",
    }


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("VAR against the raster-scan baseline.", list(MEETINGS))
    parser.set_defaults(rounds=5)  # a lap of all rows takes most of a minute
    args = resolve(parser.parse_args(words), cpu_size="small", cuda_size="paper")
    is_bf16 = args.precision == "bf16-mixed"
    meetings = [m for m in MEETINGS[args.size] if args.batch in (0, m.batch_size)]
    rivals = [rival for m in meetings for rival in build_rivals(m, args.device, is_bf16)]
    settings = {
        "size": args.size,
        "top-k": TOP_K,
        "top-p": TOP_P,
        "precision": args.precision,
        "rounds": args.rounds,
    }
    notes = (
        "Equal width, depth and parameters but for positions; 16x16 tokens in the finest map.",
        "Guided: two rows an image, as in official VAR; unguided: one, in the plain sampler two.",
        "Plain sampler: a cache grown by concatenation, AdaLN at each step, a sort of all codes.",
        "Target: VAR at least 10x the raster scan at equal width.",
        "Eager, keys and values cached in both; decoding, the same in both, is left out.",
    )
    benchmark = Benchmark(Path(__file__), rivals, settings, notes, in_one_thread=True)
    return compete(benchmark, args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
