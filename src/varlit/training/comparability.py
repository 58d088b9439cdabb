"""Which figures may stand beside published ones: those whose protocol is the published one.

The paper's figures are by ADM's evaluator and reference files. What it was given as images is not
published (there never was an official sampling script), so one way to round is asked of all ours.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from varlit.metrics.inception import INCEPTION_SHA256_PREFIX
from varlit.metrics.measures import PAPER_NUM_IMAGES
from varlit.metrics.networks import INCEPTION

REFERENCES = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}
"""ADM's files by the side of the images; README of openai/guided-diffusion, evaluations."""
ROUNDING = "uint8, nearest"


def why_not_comparable(protocol: Mapping[str, Any]) -> str:
    """Why figures of a protocol may not stand in a column with published ones; empty if they may.

    Args:
        protocol: Of `evaluate`, or as metrics.json holds it; what it does not tell is refused.
    """
    told = (_network(protocol), _count(protocol), _reference(protocol), _rounding(protocol))
    return next(filter(None, (*told, _remarks(protocol))), "")


def _network(protocol: Mapping[str, Any]) -> str:
    features = str(protocol.get("features", "unknown features"))
    if features != INCEPTION:
        return f"by {features}, not Inception"
    sha = str(protocol.get("weights_sha256", ""))
    if not sha.startswith(INCEPTION_SHA256_PREFIX):
        return f"other weights of Inception (sha256 {sha[:8] or 'not told'})"
    return ""


def _count(protocol: Mapping[str, Any]) -> str:
    count = number(protocol.get("num_images"))
    if not count:
        return "number of images not told"
    is_quick = protocol.get("is_quick") or count < PAPER_NUM_IMAGES
    return f"quick: {count:,.0f} images" if is_quick else ""


def _reference(protocol: Mapping[str, Any]) -> str:
    """A file of another content under ADM's name would pass; the page tells its sha256."""
    name = str(protocol.get("reference", "not told"))
    expected = REFERENCES.get(int(number(protocol.get("image_px"))))
    if name != expected:
        wanted = f", not {expected}" if expected else ", and ADM has none of this size"
        return f"reference {name}{wanted}"
    count, dim = number(protocol.get("reference_images")), number(protocol.get("feature_dim"))
    if 0 < count <= dim:
        return f"reference of {count:,.0f} images for {dim:,.0f} features"
    return ""


def _rounding(protocol: Mapping[str, Any]) -> str:
    rounding = str(protocol.get("rounding", "not told"))
    return "" if rounding == ROUNDING else f"rounding {rounding}, not {ROUNDING}"


def _remarks(protocol: Mapping[str, Any]) -> str:
    remarks = protocol.get("remarks") or []
    return f"beware: {remarks[0]}" if isinstance(remarks, list) and remarks else ""


def number(value: Any) -> float:
    """A finite number of a file; 0 for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else 0.0
