"""VAR against raster scan on real digits: trained alike in one run, drawn, judged and timed.

python benchmarks/checks/raster_quality.py [--out runs/raster-quality] [--quick]

Both orders have the same network, the same number of epochs of tokenizer and transformer, and the
same seeds; the raster scan's tokenizer has a single scale. The same command again goes on where it
stopped. How fast the orders are at the paper's widths: benchmarks/var_against_raster.py.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.stopwatch import Rival, lap_of, race
from raster_tables import Costs, Quality, Report, lines_of, write_json

from varlit.cli import main as command_line
from varlit.data.digits import Digits, load_digits
from varlit.generation.sampler import ImageSeeds, Sampler, SamplingSettings
from varlit.metrics.frechet import frechet_distance
from varlit.metrics.judge import DigitJudge, digit_features
from varlit.metrics.neighbours import precision_recall
from varlit.metrics.reconstruction import psnr
from varlit.models.files import LoadedVAR, load_var
from varlit.ops.costs import TransformerShape, transformer_costs
from varlit.viz.grids import image_grid, save_png

RECIPES = {"VAR": "digits", "raster scan": "digits-raster"}
GUIDANCE = {
    "none": SamplingSettings(0.0, top_k=0, top_p=0.0),
    "ramp to 1.5": SamplingSettings(1.5, top_k=0, top_p=0.0),
    "constant 2.5": SamplingSettings(2.5, top_k=0, top_p=0.0, guidance="constant"),
}
TIMED = "ramp to 1.5"
NUM_CLASSES, BATCH_SIZE, NUM_SAMPLES, QUICK_SAMPLES, QUICK_STEPS = 10, 250, 1500, 40, 2
SHOWN_PER_CLASS, ROUNDS = 8, 5


def main(words: list[str]) -> int:
    """Train both, draw, judge, time, print.

    Args:
        words: The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="default: runs/raster-quality, or for --quick /tmp"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and samples")
    parser.add_argument("--quick", action="store_true", help="two steps each: does it run?")
    args = parser.parse_args(words)
    out = args.out or Path("runs/raster-quality")
    if args.quick and args.out is None:
        out = Path(tempfile.mkdtemp(prefix="raster-quality-"))
    for recipe in RECIPES.values():
        for command in commands(recipe, out, args.seed, args.quick):
            print(f"\n$ varlit {' '.join(command)}", flush=True)
            if code := command_line.main(command):
                return code
    models = {order: load_var(out / f"var-{recipe}") for order, recipe in RECIPES.items()}
    report = measure(models, args.seed, args.quick, out / "samples.png")
    write_json(out / "report.json", report)
    print("\n" + "\n".join(lines_of(report)), f"{out / 'samples.png'}", sep="\n")
    return 0


def commands(recipe: str, out: Path, seed: int, is_quick: bool) -> list[list[str]]:
    """The three commands that train an order.

    Args:
        recipe: Its name in both stages.
        out: Folder of the runs.
        seed: Of weights and order.
        is_quick: Two steps in place of the recipe's epochs.
    """
    place = ["--root", str(out), "--gpus", "1"]
    fit = ["-c", recipe, "--seed_everything", str(seed), "--data.seed", str(seed), *place]
    fit += ["--trainer.max_steps", str(QUICK_STEPS)] * is_quick
    tokenizer, var = f"tokenizer-{recipe}", f"var-{recipe}"
    blind = [["--reconstructions.every_n_steps", "0"], ["--samples.every_n_steps", "0"]]
    of_tokenizer, of_var = blind if is_quick else ([], [])
    cache = str(out / tokenizer / "tokens")
    return [
        ["tokenizer", "fit", *fit, *of_tokenizer, "--name", tokenizer],
        ["tokenizer", "predict", "--name", tokenizer, *place],
        ["var", "fit", *fit, *of_var, "--name", var, "--data.tokens", cache],
    ]


def measure(models: dict[str, LoadedVAR], seed: int, is_quick: bool, picture: Path) -> Report:
    """Draw the same classes and seeds in both orders, and compare with real digits.

    Args:
        models: By order.
        seed: Of the samples; sample i depends on `seed + i` alone.
        is_quick: Few samples, one round of the clock.
        picture: Where the first samples go.
    """
    digits, judge = load_digits(), DigitJudge()
    num_samples = QUICK_SAMPLES if is_quick else NUM_SAMPLES
    batch_size = min(BATCH_SIZE, num_samples)
    quality, shown = [], []
    for order, loaded in models.items():
        for guidance, settings in GUIDANCE.items():
            samples = draw(loaded, settings, num_samples, seed)
            quality.append(quality_of(order, guidance, samples, digits, judge))
            if guidance == TIMED:
                shown.append(samples)
    save_png(side_by_side(shown, list(models)), picture)
    times = times_ms(models, 1 if is_quick else ROUNDS, batch_size)
    real, held_out = digit_features(digits.train_images), digit_features(digits.test_images)
    costs = [costs_of(order, loaded, times, digits, judge) for order, loaded in models.items()]
    yardstick = frechet_distance(real, held_out)
    return Report(num_samples, batch_size, seed, judge.heldout_accuracy, yardstick, costs, quality)


def draw(loaded: LoadedVAR, settings: SamplingSettings, num_samples: int, seed: int) -> Tensor:
    """Sample i is of class i mod 10.  # (N, 3, H, W)

    Args:
        loaded: What draws.
        settings: Guidance.
        num_samples: N.
        seed: Of the first.
    """
    sampler, labels = Sampler(loaded.var, loaded.tokenizer), torch.arange(num_samples) % NUM_CLASSES
    images = []
    for start in range(0, num_samples, BATCH_SIZE):
        part = labels[start : start + BATCH_SIZE]
        seeds = ImageSeeds(range(seed + start, seed + start + len(part)))
        images.append(sampler.draw(part, settings, seeds).images)
    return torch.cat(images)


def quality_of(
    order: str, guidance: str, samples: Tensor, digits: Digits, judge: DigitJudge
) -> Quality:
    """Judge samples, and compare them with the digits that were trained on.

    Args:
        order: Who drew.
        guidance: And how.
        samples: (N, 3, H, W).
        digits: The real ones.
        judge: Never saw a generated one.
    """
    labels = torch.arange(len(samples)) % NUM_CLASSES
    real, drawn = digit_features(digits.train_images), digit_features(samples)
    spread = precision_recall(real, drawn, k=3)
    return Quality(
        order,
        guidance,
        judge.accuracy(samples, labels),
        frechet_distance(real, drawn),
        spread.precision,
        spread.recall,
    )


def costs_of(
    order: str,
    loaded: LoadedVAR,
    times: dict[tuple[str, str], float],
    digits: Digits,
    judge: DigitJudge,
) -> Costs:
    """Count and look up what an order takes.

    Args:
        order: Its name.
        loaded: Its networks.
        times: From `times_ms`.
        digits: To reconstruct.
        judge: Of the reconstructions.
    """
    var, tokenizer = loaded.var, loaded.tokenizer
    width = var.config.resolved_width
    mlp_width, num_codes = round(var.config.mlp_ratio * width), tokenizer.config.codebook_size
    shape = TransformerShape(var.config.depth, width, mlp_width, num_codes, var.steps)
    redrawn = tokenizer.reconstruct(digits.test_images)
    return Costs(
        order,
        var.steps.num_steps,
        var.steps.num_tokens,
        sum(parameter.numel() for parameter in var.parameters()),
        transformer_costs(shape).sampling() / 1e6,
        times[order, "tokens"],
        times[order, "images"],
        times[order, "single"],
        psnr(digits.test_images, redrawn).mean().item(),
        judge.accuracy(redrawn, digits.test_labels),
    )


def times_ms(
    models: dict[str, LoadedVAR], rounds: int, batch_size: int
) -> dict[tuple[str, str], float]:
    """Time both orders in turn, guided.

    Args:
        models: By order.
        rounds: Laps, of which the median counts.
        batch_size: Images at a time; `single` is one.

    Returns:
        Milliseconds a batch by order and by `tokens`, `images` and `single`.
    """
    cpu, rivals = torch.device("cpu"), {}
    for what, num_images in (("tokens", batch_size), ("images", batch_size), ("single", 1)):
        for order, loaded in models.items():
            run = partial(draw_batch, loaded, num_images, is_decoded=what != "tokens")
            build = partial(lap_of, run, cpu)
            rivals[order, what] = Rival(f"{order}, {what}", build, num_images, group=what)
    timings = race(list(rivals.values()), rounds)
    return {key: timing.median_s * 1e3 for key, timing in zip(rivals, timings, strict=True)}


def draw_batch(loaded: LoadedVAR, num_images: int, is_decoded: bool) -> None:
    """Draw a batch and let it go.

    Args:
        loaded: What draws.
        num_images: How many.
        is_decoded: Or tokens alone.
    """
    sampler, settings = Sampler(loaded.var, loaded.tokenizer), GUIDANCE[TIMED]
    labels, seeds = torch.arange(num_images) % NUM_CLASSES, ImageSeeds(range(num_images))
    if is_decoded:
        sampler.draw(labels, settings, seeds)
        return
    for _ in sampler.steps(labels, settings, seeds):
        pass


def side_by_side(samples: Sequence[Tensor], orders: Sequence[str]) -> np.ndarray:
    """The first samples of each class, a block of columns for each order.

    Args:
        samples: Of each order.
        orders: Their names.
    """
    count = min(SHOWN_PER_CLASS, len(samples[0]) // NUM_CLASSES)
    blocks = [
        images[: count * NUM_CLASSES].unflatten(0, (count, NUM_CLASSES)).transpose(0, 1)
        for images in samples
    ]
    return image_grid(
        torch.cat(blocks, dim=1).flatten(0, 1),
        count * len(samples),
        row_labels=[str(digit) for digit in range(NUM_CLASSES)],
        column_labels=[name if i == 0 else "" for name in orders for i in range(count)],
        tile_px=64,
        caption=f"The first samples of each class, guidance: {TIMED}. Nothing is picked.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
