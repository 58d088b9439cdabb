"""Rows of parts: what they compute is held against the reference before it is timed."""

from collections.abc import Callable

import torch
from harness.stopwatch import Lap, Rival, lap_of
from torch import Tensor


def row(
    device: torch.device,
    batch_size: int,
    name: str,
    run: Callable[[], object],
    reference: str = "",
    check: Callable[[], None] | None = None,
) -> Rival:
    """A function as a row; `check` runs when it is set up."""

    def build() -> Lap:
        if check is not None:
            check()
        return lap_of(run, device)

    against = "" if name == reference else reference
    return Rival(name, build, batch_size, against, is_counted=False)


def assert_same(a: Tensor, b: Tensor) -> None:
    """Hold two ways to the same result, but for rounding in their type."""
    epsilon = torch.finfo(a.dtype).eps
    assert (a.float() - b.float()).norm() <= 10 * epsilon * a.float().norm(), "results differ"
