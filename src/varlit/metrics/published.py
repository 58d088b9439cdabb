"""Published figures on class-conditional ImageNet, each with where it was published.

Nothing here was measured by this project. None is what the source does not give; relative time is
a model's wall-clock time an image over that of VAR-d30 (at 512 px: of VAR-d36-s).
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER, README, THIRD_PARTY, OURS = "paper", "official README", "third party", "ours"
_PAPER_V2 = "arXiv 2404.02905v2, table 1"
_PAPER_512 = "arXiv 2404.02905v2, table 2"
_DISTILLED = "arXiv 2412.17153, table 1, sampler not told"
_README = "README of FoundationVision/VAR"


@dataclass(frozen=True)
class Published:
    """A row of a results table."""

    model: str
    fid: float
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    parameters: str = ""
    steps: str = ""
    time: str = ""  # relative
    image_px: int = 256
    kind: str = PAPER
    source: str = _PAPER_V2


# Rivals as the paper quotes them; "-re" is with rejection sampling.
RIVALS = (
    Published("StyleGAN-XL", 2.30, 265.1, 0.78, 0.53, "166M", "1", "0.3"),
    Published("ADM", 10.94, 101.0, 0.69, 0.63, "554M", "250", "168"),
    Published("LDM-4-G", 3.60, 247.7, None, None, "400M", "250"),
    Published("DiT-L/2", 5.02, 167.2, 0.75, 0.57, "458M", "250", "31"),
    Published("DiT-XL/2", 2.27, 278.2, 0.83, 0.57, "675M", "250", "45"),
    Published("L-DiT-3B", 2.10, 304.4, 0.82, 0.60, "3.0B", "250", ">45"),
    Published("L-DiT-7B", 2.28, 316.2, 0.83, 0.58, "7.0B", "250", ">45"),
    Published("MaskGIT", 6.18, 182.1, 0.80, 0.51, "227M", "8", "0.5"),
    Published("RCG (cond.)", 3.49, None, None, None, "502M", "20", "1.9"),
    Published("VQVAE-2", 31.11, None, 0.36, 0.57, "13.5B", "5120"),  # its IS is "about 45"
    Published("VQGAN", 18.65, 80.4, 0.78, 0.26, "227M", "256", "19"),
    Published("VQGAN, 1.4B", 15.78, 74.3, None, None, "1.4B", "256", "24"),
    Published("VQGAN-re", 5.20, 280.3, None, None, "1.4B", "256", "24"),
    Published("ViTVQ", 4.17, 175.1, None, None, "1.7B", "1024", ">24"),
    Published("ViTVQ-re", 3.04, 227.4, None, None, "1.7B", "1024", ">24"),
    Published("RQTransformer", 7.55, 134.0, None, None, "3.8B", "68", "21"),
    Published("RQTransformer-re", 3.80, 323.7, None, None, "3.8B", "68", "21"),
    Published("validation images", 1.78, 236.9, 0.75, 0.67),
)
RIVALS_512 = tuple(
    Published(model, fid, score, time=time, image_px=512, source=_PAPER_512)
    for model, fid, score, time in (
        ("BigGAN", 8.43, 177.9, ""),
        ("ADM", 23.24, 101.0, ""),
        ("DiT-XL/2", 3.04, 240.8, "81"),
        ("MaskGIT", 7.32, 156.0, "0.5"),
        ("VQGAN", 26.52, 66.8, "25"),
    )
)


def _readme(model: str, fid: float, parameters: str, time: str, image_px: int = 256) -> Published:
    return Published(
        model,
        fid,
        parameters=parameters,
        time=time,
        image_px=image_px,
        kind=README,
        source=_README,
    )


def _third(
    model: str,
    source: str,
    fid: float,
    inception_score: float | None = None,
    precision: float | None = None,
    recall: float | None = None,
) -> Published:
    kind = THIRD_PARTY
    return Published(model, fid, inception_score, precision, recall, kind=kind, source=source)


# By the name of the recipe that trains the same model.
VARS = {
    "d16": (
        Published("d16", 3.30, 274.4, 0.84, 0.51, "310M", "10", "0.4"),
        _readme("d16", 3.55, "310M", "0.4"),
        _third("d16", "VAR issue 83, with the README's sampler", 3.49, 281.7, 0.85, 0.50),
    ),
    "d20": (
        Published("d20", 2.57, 302.6, 0.83, 0.56, "600M", "10", "0.5"),
        _readme("d20", 2.95, "600M", "0.5"),
        _third("d20", _DISTILLED, 3.35, 301.4, 0.84, 0.51),
    ),
    "d24": (
        Published("d24", 2.09, 312.9, 0.82, 0.59, "1.0B", "10", "0.6"),
        _readme("d24", 2.33, "1.0B", "0.6"),
        _third("d24", _DISTILLED, 2.51, 312.2, 0.82, 0.53),
    ),
    "d30": (
        Published("d30", 1.92, 323.1, 0.82, 0.59, "2.0B", "10", "1"),
        _readme("d30", 1.97, "2.0B", "1"),
        _third("d30", "arXiv 2512.03796, abstract", 1.95),
    ),
    "d30-re": (
        Published("d30-re", 1.73, 350.2, 0.82, 0.60, "2.0B", "10", "1"),
        _readme("d30-re", 1.80, "2.0B", "1"),
    ),
    "d36-s": (
        Published(
            "d36-s", 2.63, 303.2, None, None, "2.3B", "10", "1", image_px=512, source=_PAPER_512
        ),
        _readme("d36-s", 2.63, "2.3B", "", 512),
    ),
}

_WIDTH_PER_BLOCK, _IMAGENET_CLASSES, _DEPTHS_256, _DEPTH_512 = 64, 1000, (16, 20, 24, 30), 36


def model_name(depth: int, width: int, image_px: int, num_classes: int) -> str:
    """Which published VAR has this shape, such as `d16`; empty if none."""
    if width != _WIDTH_PER_BLOCK * depth or num_classes != _IMAGENET_CLASSES:
        return ""
    if image_px == 256 and depth in _DEPTHS_256:
        return f"d{depth}"
    return "d36-s" if (image_px, depth) == (512, _DEPTH_512) else ""


def published_figures(name: str) -> dict[str, dict[str, float]]:
    """Figures of a VAR by source, under the names that they have in metrics.json."""
    return {
        row.kind: {
            key: value
            for key, value in (
                ("fid", row.fid),
                ("inception_score_mean", row.inception_score),
                ("precision", row.precision),
                ("recall", row.recall),
            )
            if value is not None
        }
        for row in VARS.get(name, ())
    }
