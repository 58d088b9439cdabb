"""Evaluation by part: drawing, decoding, features, distances; and the root of a matrix by itself.

python benchmarks/evaluation.py [--device cuda] [--size d16] [--dim 2048] [--full]

All networks have random weights. `--full` draws and measures 50,000 images once, as `varlit var
test` does, in place of the table.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import scipy.linalg
import torch
from evaluation_full import full_report
from evaluation_networks import random_inception, random_mobilenet, tiny_network
from harness.options import Benchmark, build_parser, compete, exit_code, publish, resolve
from harness.stopwatch import Rival
from sampling import as_recorded
from torch import Tensor
from var_rows import row
from var_sizes import SEED, SIZES, build_tokenizer, build_var, random_labels, random_tokens

from varlit.generation.random_numbers import ImageSeeds
from varlit.generation.recorded.compiled import open_sampler
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.metrics.feature_rows import FeatureRows
from varlit.metrics.frechet import FeatureStatistics, FeatureSums, statistics_distance
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.kernel import kernel_distance
from varlit.metrics.measures import PAPER_NUM_IMAGES
from varlit.metrics.neighbours import precision_recall
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.reconstruction import to_uint8

DRAWING, DECODING = "drawing tokens, eager", "decoding, eager"
INCEPTION, MOBILENET = "features: Inception", "features: MobileNetV2"
GATHERING = "sums and rows of features"
WHOLE = "drawn, decoded, looked at, gathered"
SCIPY = "Frechet distance: scipy.linalg.sqrtm (reference)"
OURS = "Frechet distance: symmetric eigenvalues (ours)"
KERNEL, NEIGHBOURS = "KID", "precision and recall"
SETTINGS = SamplingSettings()
TARGETS_S = {"d16": 180, "d30": 540}


@dataclass(frozen=True)
class Amounts:
    """How much a size looks at."""

    batch_size: dict[str, int]
    dim: int
    """Of the matrices whose root is taken."""
    num_rows: int
    """Features on either side of KID, precision and recall."""
    num_subsets: int
    subset_size: int


AMOUNTS = {
    "tiny": Amounts({"cpu": 2, "cuda": 2}, 16, 40, 2, 10),
    "photos64": Amounts({"cpu": 16, "cuda": 64}, 1024, 1000, 10, 500),
    "d16": Amounts({"cpu": 1, "cuda": 128}, 2048, 10_000, 100, 1000),
    "d30": Amounts({"cpu": 1, "cuda": 64}, 2048, 10_000, 100, 1000),
}


class Parts:
    """What flows into each part; networks are built when a row asks for them."""

    def __init__(self, name: str, batch_size: int, dim: int, device: torch.device, bf16: bool):
        self.size, self.amounts = SIZES[name], AMOUNTS[name]
        self.batch_size, self.dim, self.device, self.is_bf16 = batch_size, dim, device, bf16
        self.tokenizer = cache(lambda: build_tokenizer(self.size, device))
        self.inception, self.mobilenet = cache(random_inception), cache(random_mobilenet)
        self.network = cache(tiny_network) if name == "tiny" else self.inception
        self.sampler, self.images = cache(self._sampler), cache(self._images)
        self.latent = cache(self._latent)
        self.rows, self.statistics = cache(self._rows), cache(self._statistics)
        self.gathered = cache(
            lambda: ImageFeatures(self.network(), max_rows=AMOUNTS[name].num_rows)
        )
        self.num_drawn = 0

    def autocast(self) -> torch.autocast:
        """The precision that was asked for, of drawing and decoding."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)

    def draw_tokens(self) -> None:
        """The sampling loop without the decoder; a graph holds both, so this is the eager one."""
        with self.autocast():
            seeds = ImageSeeds(range(self.batch_size))
            for _ in self._eager().steps(self._labels(), SETTINGS, seeds):
                pass

    def decode(self) -> None:
        """Latent maps to images."""
        with self.autocast():
            self.tokenizer().decode_features(self.latent())

    def look(self, network: Callable[[], FeatureNetwork]) -> None:
        """Images in uint8 to features."""
        network()(self.images())

    def gather(self) -> None:
        """Features to sums in fp64 and rows on the CPU."""
        sums, rows = FeatureSums(self.rows().shape[1]), FeatureRows(self.rows().shape[1])
        part = self.rows()[: self.batch_size].to(self.device)
        sums.update(part)
        rows.add(torch.arange(len(part)), part)

    def draw_and_look(self) -> None:
        """Everything that is done for each image."""
        ids = torch.arange(self.num_drawn, self.num_drawn + self.batch_size)
        self.num_drawn += self.batch_size
        with self.autocast():
            drawn = self.sampler().draw(self._labels(), SETTINGS, ImageSeeds(ids.tolist()))
        self.gathered().update(ids, drawn.images)

    def compare(self, distance: Callable[..., object], **settings: int) -> None:
        """A measure of two sets of rows."""
        distance(self.rows(), self.rows().flip(1), device=self.device, **settings)

    def _sampler(self) -> Sampler:
        is_cuda = self.device.type == "cuda"
        dtype = torch.bfloat16 if self.is_bf16 else None
        var = build_var(self.size, self.device).eval().requires_grad_(False)
        sampler = open_sampler(var, self.tokenizer(), fast=is_cuda, dtype=dtype)
        if is_cuda:
            with as_recorded(), self.autocast():
                sampler.draw(self._labels(), SETTINGS, ImageSeeds(range(self.batch_size)))
        return sampler

    def _eager(self) -> Sampler:
        return getattr(self.sampler(), "eager", self.sampler())

    def _labels(self) -> Tensor:
        return random_labels(self.batch_size, self.device)

    def _latent(self) -> Tensor:
        tokens = random_tokens(self.size, self.batch_size, self.device)
        return self.tokenizer().quantizer.decode(tokens)

    def _images(self) -> Tensor:
        with self.autocast():
            return to_uint8(self.tokenizer().decode_features(self.latent()))

    def _rows(self) -> Tensor:
        draw = torch.Generator().manual_seed(SEED)
        shape = (self.amounts.num_rows, self.network().feature_dim)
        return torch.randn(shape, generator=draw)

    def _statistics(self) -> tuple[FeatureStatistics, FeatureStatistics]:
        """Two Gaussians whose deviations fall off as 1 / i, as those of features do."""
        draw = torch.Generator().manual_seed(SEED)

        def one() -> FeatureStatistics:
            spread = 1 / torch.arange(1, self.dim + 1, dtype=torch.float64)
            mix = torch.randn(self.dim, self.dim, generator=draw, dtype=torch.float64)
            turn = torch.linalg.qr(mix).Q * spread
            mean = torch.randn(self.dim, generator=draw, dtype=torch.float64) / self.dim
            return FeatureStatistics(mean, turn @ turn.T, PAPER_NUM_IMAGES)

        return one(), one()


def scipy_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The distance as pytorch-fid and torch-fidelity compute it: the root of a product."""
    root = scipy.linalg.sqrtm((a.cov @ b.cov).numpy()).real.trace()
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.cov.trace() + b.cov.trace() - 2 * root)


def root_rivals(parts: Parts) -> list[Rival]:
    """The Frechet distance both ways, with what they differ by."""
    apart: list[float] = []

    def run(distance: Callable[..., float]) -> float:
        return distance(*parts.statistics())

    def check() -> None:
        expected, found = run(scipy_distance), run(statistics_distance)
        apart.append(abs(found - expected) / expected)

    rivals = [
        row(parts.device, 0, SCIPY, partial(run, scipy_distance)),
        row(parts.device, 0, OURS, partial(run, statistics_distance), SCIPY, check),
    ]
    rivals[1].extra["relative difference"] = lambda _: f"{apart[0]:.1e}"
    return rivals


def build_rivals(parts: Parts) -> list[Rival]:
    """Rows of the table."""
    amounts, n = parts.amounts, parts.batch_size
    kid = {"num_subsets": amounts.num_subsets, "subset_size": amounts.subset_size}
    rivals = [
        row(parts.device, n, DRAWING, parts.draw_tokens),
        row(parts.device, n, DECODING, parts.decode),
        row(parts.device, n, INCEPTION, partial(parts.look, parts.inception)),
        row(parts.device, n, MOBILENET, partial(parts.look, parts.mobilenet)),
        row(parts.device, n, GATHERING, parts.gather),
        row(parts.device, n, WHOLE, parts.draw_and_look),
    ]
    for rival in rivals:
        rival.extra[f"s for {PAPER_NUM_IMAGES:,}"] = partial(_seconds_for_all, n)
    distances = {
        KERNEL: partial(parts.compare, kernel_distance, **kid),
        NEIGHBOURS: partial(parts.compare, precision_recall),
    }
    return [
        *rivals,
        *root_rivals(parts),
        *(row(parts.device, amounts.num_rows, name, run) for name, run in distances.items()),
    ]


def _seconds_for_all(num_images: int, seconds: float) -> str:
    return f"{PAPER_NUM_IMAGES / num_images * seconds:,.0f}"


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time of the parts of an evaluation.", list(AMOUNTS))
    parser.add_argument(
        "--dim", type=int, default=0, help="side of the matrix; default: the size's"
    )
    parser.add_argument("--full", action="store_true", help="draw and measure all, once")
    parser.add_argument("--images", type=int, default=PAPER_NUM_IMAGES, help="of --full")
    args = resolve(parser.parse_args(words), cpu_size="photos64", cuda_size="d16")
    amounts, size = AMOUNTS[args.size], SIZES[args.size]
    batch_size = args.batch or amounts.batch_size[args.device.type]
    is_bf16 = args.precision == "bf16-mixed"
    parts = Parts(args.size, batch_size, args.dim or amounts.dim, args.device, is_bf16)
    settings = {
        "size": args.size,
        "image": f"{size.tokenizer.image_size} px",
        "batch": batch_size,
        "precision": args.precision,
    }
    target = TARGETS_S.get(args.size)
    notes = [f"Target for {PAPER_NUM_IMAGES:,} images on an H100: {target} s."] if target else []
    if args.full:
        report = full_report(Path(__file__).stem, parts, args.images, settings, notes)
        publish(report, args)
        return 0
    settings |= {
        "matrix": parts.dim,
        "rows of KID, precision": amounts.num_rows,
        "KID": f"{amounts.num_subsets} subsets of {amounts.subset_size}",
        "rounds": args.rounds,
    }
    notes.append(
        f"Networks with random weights; features of {parts.network().feature_dim} numbers."
    )
    rivals = build_rivals(parts)
    benchmark = Benchmark(Path(__file__), rivals, settings, notes, in_one_thread=True)
    return compete(benchmark, args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
