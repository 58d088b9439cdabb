"""What the quickstart measures: samples and reconstructions of digits against real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlit.cli.arguments import Count
from varlit.data.digits import Digits, load_digits
from varlit.generation.sampler import ImageSeeds, Sampler, SamplingSettings
from varlit.metrics.frechet import frechet_distance
from varlit.metrics.judge import DigitJudge, digit_features
from varlit.metrics.neighbours import precision_recall
from varlit.models.files import LoadedVAR, load_var
from varlit.models.vqvae import VQVAE
from varlit.viz.grids import image_grid, save_png
from varlit.viz.poster import Section, poster

NUM_CLASSES = 10
BATCH_SIZE = 250
NUM_SHOWN = 14


def measure(
    folder: Path, num_samples: int, cfg_scale: float, seed: int, picture: Path
) -> tuple[dict[str, Any], Path]:
    """Draw digits, judge them, draw the poster.

    Nothing is picked: sample i is of class i mod 10 and depends on `seed + i` alone, all of them
    are judged, and the picture shows the first ones.

    Args:
        folder: Folder of the VAR.
        num_samples: How many to draw.
        cfg_scale: Guidance.
        seed: Of the samples.
        picture: Where the poster goes.

    Returns:
        The figures by name, and where the picture is.
    """
    loaded, digits = load_var(folder), load_digits()
    judge = DigitJudge()
    labels = torch.arange(num_samples) % NUM_CLASSES
    samples, frames = _draw(loaded, labels, cfg_scale, seed)
    reconstructions = loaded.tokenizer.reconstruct(digits.test_images)
    real, drawn = digit_features(digits.train_images), digit_features(samples)
    quality = precision_recall(real, drawn, k=3)
    report = {
        "judge_accuracy": judge.accuracy(samples, labels),
        "judge_heldout_accuracy": judge.heldout_accuracy,
        "reconstruction_accuracy": judge.accuracy(reconstructions, digits.test_labels),
        "precision": quality.precision,
        "recall": quality.recall,
        "frechet": frechet_distance(real, drawn),
        "frechet_yardstick": frechet_distance(real, digit_features(digits.test_images)),
        "num_samples": num_samples,
    }
    sections = [
        *_tokenizer_sections(digits, reconstructions, loaded.tokenizer),
        _growing_section(frames, loaded.tokenizer),
        _sample_section(samples, cfg_scale, report),
    ]
    footer = f"Drawn by: varlit quickstart --seed {seed}. Nothing is picked."
    sheet = poster(sections, headline="varlit: digits, scale by scale", footer=footer)
    return report, save_png(sheet, picture)


def _draw(
    loaded: LoadedVAR, labels: Tensor, cfg_scale: float, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """All samples, and how the first ones grew."""
    sampler = Sampler(loaded.var, loaded.tokenizer)
    settings = SamplingSettings(cfg_scale, top_k=0, top_p=0.0)
    images: list[Tensor] = []
    frames: list[Tensor] = []
    count = Count("drawn", len(labels))
    for start in range(0, len(labels), BATCH_SIZE):
        part = labels[start : start + BATCH_SIZE]
        random = ImageSeeds(range(seed + start, seed + start + len(part)))
        drawn = sampler.draw(part, settings, random, with_frames=start == 0)
        images.append(drawn.images)
        frames = frames or drawn.frames
        count.reach(start + len(part))
    return torch.cat(images), [frame[:NUM_SHOWN] for frame in frames]


def _tokenizer_sections(digits: Digits, reconstructions: Tensor, tokenizer: VQVAE) -> list[Section]:
    config = tokenizer.config
    originals = digits.test_images[:NUM_SHOWN]
    pair = torch.cat((originals, reconstructions[:NUM_SHOWN]))
    caption = (
        f"Held-out handwritten digits, each told in {tokenizer.scales.num_tokens} tokens of a "
        f"codebook of {config.codebook_size}."
    )
    labels = ["real", "reconstructed"]
    grid = image_grid(pair, NUM_SHOWN, row_labels=labels, tile_px=64, margin_px=0)
    return [Section("Stage 1: the tokenizer sees and redraws", grid, caption)]


def _growing_section(frames: list[Tensor], tokenizer: VQVAE) -> Section:
    # A column a digit reads as growth from top to bottom, and fits the width of the other parts.
    names = [f"after {side} x {side}" for side in tokenizer.scales.sides]
    rows = torch.cat(frames)
    grid = image_grid(rows, len(frames[0]), row_labels=names, tile_px=64, margin_px=0)
    caption = "The first samples after each scale: VAR draws a whole token map at a time."
    return Section("Stage 2: a picture grows, scale by scale", grid, caption)


def _sample_section(samples: Tensor, cfg_scale: float, report: dict[str, Any]) -> Section:
    columns = min(16, len(samples) // NUM_CLASSES)
    shown = samples[: columns * NUM_CLASSES].unflatten(0, (columns, NUM_CLASSES)).transpose(0, 1)
    grid = image_grid(
        shown.flatten(0, 1),
        columns,
        row_labels=[str(digit) for digit in range(NUM_CLASSES)],
        tile_px=64,
        margin_px=0,
    )
    caption = (
        f"The first {columns} samples of each class at guidance {cfg_scale:g}. A judge that never "
        f"saw a generated digit names the class of {report['judge_accuracy']:.1%} of "
        f"{report['num_samples']:,}."
    )
    return Section("Samples by class", grid, caption)
