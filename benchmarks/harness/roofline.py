"""How far from the card's limit: operations counted, over what the data sheet promises."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.stopwatch import Lap, Rival

# Dense bf16 matrix products by the makers' data sheets, in TFLOP/s, by a part of the name.
BF16_PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}


def card_peak_tflops(device: torch.device) -> float:
    """What the card can do at most in bf16; 0 where it is not in the table."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in BF16_PEAK_TFLOPS.items() if part in name), 0.0)


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
