"""Seconds on a device that runs behind the program."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Run a function once and return its wall time, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
