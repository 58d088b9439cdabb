"""How far from the card's limit: operations counted, over what the data sheet promises."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.stopwatch import Lap, Rival, lap_of
from varlit.ops.costs import card_peak_tflops as peak_of


def card_peak_tflops(device: torch.device) -> float:
    """What the card can do at most in bf16; 0 where it is not in the table."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else 0.0


def measured_tflops(device: torch.device, side: int = 8192, rounds: int = 5) -> float:
    """What the device reaches in a bf16 product of random matrices, in TFLOP/s: its best round."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    lap = lap_of(lambda: a @ b, device, num_skipped=3)
    return 2 * side**3 / min(lap(10) for _ in range(rounds)) / 1e12


def flops_per_image(rival: Rival) -> float:
    """Operations of one run by torch's counter, forward and backward, over its images.

    Convolutions and matrix products, two operations a multiply-add. On a CPU attention is not
    counted, as torch has no formula for that kernel.
    """
    lap: Lap = rival.build()
    # With two runs and one, what a lap does beside its runs falls out.
    return (_count(lap, 2) - _count(lap, 1)) / rival.num_images


def _count(lap: Lap, num_runs: int) -> float:
    with FlopCounterMode(display=False) as counter:
        lap(num_runs)
    return float(counter.get_total_flops())
