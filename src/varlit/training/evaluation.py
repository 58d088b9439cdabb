"""FID of a transformer, first version: draw, round, extract features, compare; no files between.

Image i has label i mod num_classes and random numbers from `seed + i`, so the set does not
depend on the number of processes or on the batch size.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.sampler import SamplingSettings
from varlit.metrics.fid import FIDReport, InceptionMetrics
from varlit.metrics.inception import find_inception
from varlit.models.config import PlainConfig

PAPER_NUM_IMAGES = 50_000
SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class EvaluationConfig(PlainConfig):
    """What `varlit var test` draws; the defaults are the protocol of VAR's README."""

    num_images: int = PAPER_NUM_IMAGES
    """Images drawn, classes evenly; fewer than 50,000 is a quick look, not a figure to quote."""
    batch_size: int = 64
    """Images drawn at a time on each device."""
    cfg_scale: float = 1.5
    """Guidance, rising over the scales."""
    top_k: int = 900
    """Draw among the k likeliest codes; 0 = all."""
    top_p: float = 0.96
    """Draw within this probability; 0 = all."""
    seed: int = 0
    """Image i is drawn from seed + i."""
    reference: str = ""
    """An .npz with `mu` and `sigma` of Inception features, such as those of the ADM suite."""
    inception: str = ""
    """File with Inception's weights; default $VARLIT_INCEPTION, the hub cache, a download."""

    def __post_init__(self) -> None:
        if self.num_images < 2 or self.batch_size < 1:
            raise UserError(
                "evaluation needs at least 2 images, in batches of at least 1; got num_images "
                f"{self.num_images}, batch_size {self.batch_size}"
            )
        self.sampling()

    def sampling(self) -> SamplingSettings:
        """The settings of the sampler."""
        return SamplingSettings(self.cfg_scale, self.top_k, self.top_p)


def open_metrics(
    config: EvaluationConfig, flag: str = "--model.evaluation.reference"
) -> InceptionMetrics:
    """Inception and its reference, before anything is drawn.

    Args:
        config: Where they are.
        flag: How the caller's user gives the reference.

    Raises:
        UserError: If the weights or the reference are not to be had.
    """
    missing = []
    try:
        find_inception(config.inception or None)
    except UserError as error:
        missing.append(str(error))
    if not config.reference:
        missing.append(
            f"FID needs statistics of real images: give {flag} FILE.npz with "
            "`mu` and `sigma`, such as ADM's VIRTUAL_imagenet256_labeled.npz"
        )
    elif not Path(config.reference).is_file():
        missing.append(f"{flag} {config.reference}: no such file")
    if missing:
        raise UserError("\n        ".join(missing))
    metrics = InceptionMetrics(config.inception or None)
    metrics.load_reference(config.reference)
    return metrics


def measure_samples(
    draw: Callable[[Tensor, list[int]], Tensor],
    num_classes: int,
    config: EvaluationConfig,
    metrics: InceptionMetrics,
    rank: int = 0,
    world_size: int = 1,
) -> FIDReport:
    """Draw this process's share of the images and measure all of them together.

    Args:
        draw: Images (B, 3, H, W) in [-1, 1] of labels (B,) and seeds.
        num_classes: Labels are spread evenly over them.
        config: How many and how.
        metrics: From `open_metrics`; every process must call this function.
        rank: This process.
        world_size: Number of processes.
    """
    ids = torch.arange(rank, config.num_images, world_size)
    started = told = time.monotonic()
    for part in ids.split(config.batch_size):
        seeds = (config.seed + part).tolist()
        metrics.update(draw(part % num_classes, seeds))
        now = time.monotonic()
        if rank == 0 and now - told > SECONDS_BETWEEN_LINES:
            told, done = now, int(part[-1]) + 1
            left = (now - started) / done * (config.num_images - done)
            print(f"drawn {done:,}/{config.num_images:,}  {left / 60:.1f} min left", flush=True)
    return metrics.compute()


def told(report: FIDReport) -> dict[str, float]:
    """Figures by name; `fid` names the full protocol alone, fewer images give a `quick_fid`."""
    quick = "quick_" if report.num_images < PAPER_NUM_IMAGES else ""
    figures = {k: v for k, v in report.to_dict().items() if isinstance(v, int | float)}
    return {f"{quick}{name}": float(value) for name, value in figures.items()}
