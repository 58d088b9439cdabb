"""What edits keep and change, on real digits: the table of docs/editing.md.

python benchmarks/checks/editing_digits.py [--run runs/demo/var] [--quick]

Every test digit is drawn anew in its lower half, or as a whole, with the defaults of `edit`, and
judged: is it now what was asked for, is it still what it was, and how far is the kept part off?
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlit.checkpoints.pretrained import load
from varlit.checkpoints.pretrained_var import PretrainedVAR
from varlit.data.digits import Digits, load_digits
from varlit.metrics.judge import DigitJudge
from varlit.models.vqvae import VQVAE

NUM_CLASSES, SHIFT = 10, 3
"""The other class is the own one plus 3."""
SEEDS, QUICK_DIGITS = (0, 1000, 2000), 10
KEPT_ROWS = 12
"""Of 32; the mask begins at row 16, and its edge has a say above it."""
BATCH_SIZE = 100


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    is_other: bool = True
    is_whole: bool = False
    free_first_scale: bool = False
    hide_masked: bool = False
    refit_known: bool = False


CASES = (
    Case("no class", is_other=False),
    Case("no class, `refit_known`", is_other=False, refit_known=True),
    Case("another class"),
    Case("another class, `free_first_scale`", free_first_scale=True),
    Case(
        "another class, `free_first_scale`, `refit_known`",
        free_first_scale=True,
        refit_known=True,
    ),
    Case("another class, `hide_masked`", hide_masked=True),
    Case("another class, whole picture", is_whole=True),
    Case(
        "another class, whole picture, `free_first_scale`",
        is_whole=True,
        free_first_scale=True,
    ),
)


@dataclass(frozen=True)
class Row:
    """What a case came to, over all digits and seeds."""

    name: str
    asked: float | None
    """Share that the judge takes for the class that was asked for; None where none was."""
    own: float
    error: float | None
    """Of the kept part in grey levels of 255; None where nothing is kept."""


def main(words: list[str]) -> int:
    """Edit, judge, print.

    Args:
        words: The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo/var", help="a VAR of digits")
    parser.add_argument("--quick", action="store_true", help="a few digits, one seed: does it run?")
    args = parser.parse_args(words)
    var, digits = load(args.run), load_digits()
    if not isinstance(var, PretrainedVAR):
        parser.error(f"{args.run} is a tokenizer, expected a VAR")
    seeds = SEEDS[:1] if args.quick else SEEDS
    count = QUICK_DIGITS if args.quick else len(digits.test_images)
    rows = measure(var, digits, DigitJudge(), seeds, count)
    print("\n".join(lines_of(rows)))
    off = error_of(var.tokenizer.reconstruct(digits.test_images[:count]), digits)
    print(f"\n{count} test digits, seeds {', '.join(map(str, seeds))}; tokenizer alone: {off:.1f}")
    return 0


def measure(
    var: PretrainedVAR, digits: Digits, judge: DigitJudge, seeds: Sequence[int], count: int
) -> list[Row]:
    """Edit the first `count` test digits in every way.

    Args:
        var: Draws.
        digits: The real ones.
        judge: Never saw a drawn one.
        seeds: Digit i is drawn from each of them plus i.
        count: How many digits.
    """
    images, labels = digits.test_images[:count], digits.test_labels[:count]
    rows = []
    for case in CASES:
        asked = (labels + SHIFT) % NUM_CLASSES
        drawn = [edited(var, var.tokenizer, images, asked, case, seed) for seed in seeds]
        found = torch.cat(drawn)
        rows.append(
            Row(
                case.name,
                judge.accuracy(found, asked.repeat(len(seeds))) if case.is_other else None,
                judge.accuracy(found, labels.repeat(len(seeds))),
                None if case.is_whole else sum(error_of(x, digits) for x in drawn) / len(drawn),
            )
        )
    return rows


def edited(
    var: PretrainedVAR, tokenizer: VQVAE, images: Tensor, asked: Tensor, case: Case, seed: int
) -> Tensor:
    """One edit of each image.  # (B, 3, H, W)

    Args:
        var: Draws.
        tokenizer: Gives the side.
        images: (B, 3, H, W).
        asked: The other classes (B,), for cases that ask for one.
        case: What is drawn anew, and how.
        seed: Of the first.
    """
    side = tokenizer.config.image_size
    mask = torch.ones(side, side, dtype=torch.bool)
    if not case.is_whole:
        mask[: side // 2] = False
    labels = asked if case.is_other else None
    found = var.edit(
        images,
        mask,
        labels,
        free_first_scale=case.free_first_scale,
        hide_masked=case.hide_masked,
        refit_known=case.refit_known,
        seed=seed,
        batch_size=BATCH_SIZE,
    )
    assert isinstance(found, Tensor)
    return found


def error_of(found: Tensor, digits: Digits) -> float:
    """Mean difference from the test digits in the upper rows, in grey levels.

    Args:
        found: (B, 3, H, W) in [-1, 1], of the first B test digits.
        digits: The real ones.
    """
    own = digits.test_images[: len(found)]
    return (found - own)[:, :, :KEPT_ROWS].abs().mean().item() * 127.5


def lines_of(rows: Sequence[Row]) -> list[str]:
    """The table in Markdown.

    Args:
        rows: From `measure`.
    """
    lines = ["| lower half | asked | own | error of the kept part |", "|---|---|---|---|"]
    for row in rows:
        asked = "" if row.asked is None else f"{row.asked:.0%}"
        error = "" if row.error is None else f"{row.error:.1f}"
        lines.append(f"| {row.name} | {asked} | {row.own:.0%} | {error} |".replace("  |", " |"))
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
