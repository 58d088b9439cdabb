"""A whole evaluation, once: draw, look, measure, against a reference of random features."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from evaluation_networks import random_reference
from harness.report import Report
from harness.stopwatch import Lap, Rival, Timing
from torch import Tensor
from var_sizes import NUM_CLASSES

from varlit.generation.random_numbers import ImageSeeds
from varlit.metrics.measures import PAPER_NUM_IMAGES
from varlit.metrics.references import NUM_ROWS
from varlit.training.evaluation import Subject, evaluate
from varlit.training.evaluation_config import EvaluationConfig

if TYPE_CHECKING:
    from evaluation import Parts


def full_report(
    title: str,
    parts: "Parts",
    num_images: int,
    settings: Mapping[str, object],
    notes: Sequence[str],
) -> Report:
    """Evaluate `num_images`, and tell the seconds of it as a table of one row."""
    # Fewer than 50,000 are only let pass as a quick look.
    quick = 0 if num_images >= PAPER_NUM_IMAGES else num_images
    wanted = max(num_images, PAPER_NUM_IMAGES)
    config = EvaluationConfig(num_images=wanted, quick=quick, batch_size=parts.batch_size)
    network, image_px = parts.network(), parts.size.tokenizer.image_size
    reference = random_reference(network, min(NUM_ROWS, num_images), image_px)
    sampler, drawing = parts.sampler(), config.sampling()

    def draw(labels: Tensor, seeds: list[int]) -> Tensor:
        with parts.autocast():
            return sampler.draw(labels.to(parts.device), drawing, ImageSeeds(seeds)).images

    subject = Subject(
        draw,
        num_classes=NUM_CLASSES,
        image_px=image_px,
        weights={"var_sha256": "random", "tokenizer_sha256": "random"},
        device=parts.device,
    )
    began_s = time.perf_counter()
    found = evaluate(subject, config, network, (reference,))
    seconds = time.perf_counter() - began_s
    extra: dict[str, Callable[[float], str]] = {
        "drawing and looking": lambda _: f"{found.protocol['drawing_s']:g} s",
        "measuring": lambda _: f"{found.protocol['measuring_s']:g} s",
    }
    name = f"{num_images:,} images, drawn, looked at, measured"
    rival = Rival(name, _not_built, num_images, is_counted=False, extra=extra)
    return Report(title, settings, [Timing(rival, (seconds,))], notes=[*notes, *found.remarks])


def _not_built() -> Lap:
    raise NotImplementedError("it ran already")
