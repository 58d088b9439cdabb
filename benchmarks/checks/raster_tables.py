"""What `raster_quality.py` finds, as plain data and as two tables in Markdown."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Costs:
    """What an order is and takes."""

    order: str
    steps: int
    tokens: int
    parameters: int
    mflop: float
    """Of the transformer for an image with guidance, by formula."""
    tokens_ms: float
    """Of a batch to draw, decoding aside."""
    images_ms: float
    """The same with decoding."""
    single_ms: float
    """Of one image with decoding."""
    reconstruction_psnr_db: float
    reconstructions_judged_right: float


@dataclass(frozen=True)
class Quality:
    """What an order draws at a guidance."""

    order: str
    guidance: str
    judged_right: float
    frechet: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Report:
    """All that one run found."""

    num_samples: int
    batch_size: int
    seed: int
    judge_heldout_accuracy: float
    frechet_yardstick: float
    """Of held-out digits to those that were trained on."""
    costs: list[Costs]
    quality: list[Quality]


def lines_of(report: Report) -> list[str]:
    """The two tables in Markdown.

    Args:
        report: From `measure`.
    """
    batch = report.batch_size
    lines = [
        "| order | steps | tokens | parameters | MFLOP an image | ms tokens of "
        f"{batch} | ms images of {batch} | ms one image | reconstruction dB | read right |",
        "|---|" + "---:|" * 9,
    ]
    lines += [
        f"| {row.order} | {row.steps} | {row.tokens} | {row.parameters:,} | {row.mflop:.1f} | "
        f"{row.tokens_ms:,.0f} | {row.images_ms:,.0f} | {row.single_ms:.1f} | "
        f"{row.reconstruction_psnr_db:.2f} | {row.reconstructions_judged_right:.1%} |"
        for row in report.costs
    ]
    lines += ["", "| order | guidance | judged right | Frechet | precision | recall |"]
    lines.append("|---|---|" + "---:|" * 4)
    lines += [
        f"| {row.order} | {row.guidance} | {row.judged_right:.1%} | {row.frechet:.1f} | "
        f"{row.precision:.3f} | {row.recall:.3f} |"
        for row in report.quality
    ]
    yardstick = (
        f"Real held-out digits: judged right {report.judge_heldout_accuracy:.1%}, Frechet "
        f"{report.frechet_yardstick:.1f}. {report.num_samples:,} samples a row, seed {report.seed}."
    )
    return [*lines, "", yardstick]


def write_json(path: Path, report: Report) -> None:
    """Write a file that appears whole.

    Args:
        path: Where.
        report: All of it goes there.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_text(json.dumps(asdict(report), indent=2) + "\n")
    os.replace(temporary, path)
