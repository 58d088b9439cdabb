"""What an evaluation says of itself beside its figures: its name, its cost, its versions."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from varlit.generation.rejection.rule import RejectionCost
from varlit.metrics.ranks import sum_over_ranks

PACKAGES = (
    *("varlit", "torch", "torch-fidelity", "torchmetrics", "lightning"),
    *("numpy", "scipy", "Pillow", "torchvision"),
)
CLASSIFIERS = "timm"  # told only where it was loaded, for a classifier


def protocol_hash(about: Mapping[str, Any]) -> str:
    """A short name of a drawing protocol."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def told_cost(cost: RejectionCost | None) -> dict[str, Any]:
    """What choosing took: on all processes, with what was saved before a cut.

    Every process must call it. Seconds are those of all processes together.
    """
    if cost is None:
        return {}
    counts = cost.counts()
    values = sum_over_ranks(torch.tensor(list(counts.values()), dtype=torch.float64))
    whole = RejectionCost()
    whole.add_counts(dict(zip(counts, values.tolist(), strict=True)))
    return {"rejection_cost": whole.to_dict()}


def versions(device: torch.device) -> dict[str, str]:
    """Of all that has a say in the figures."""
    told = {"python": platform.python_version()}
    for package in (*PACKAGES, *([CLASSIFIERS] * (CLASSIFIERS in sys.modules))):
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        told |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name(device)}
    return told
