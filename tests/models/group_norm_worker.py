"""Compares the Triton kernels in Triton's interpreter with torch, and prints a line for each case.

A process of its own, because Triton decides when it is imported whether it interprets.
"""

import json

import torch
from torch.nn import functional

from varlit.models.group_norm_silu import group_norm_silu

CASES = [
    ((2, 20, 6, 6), 4),  # five channels a group: no power of two
    ((1, 8, 9, 7), 2),  # fewer pixels than a tile
    ((1, 6, 72, 64), 3),  # more than one tile, the last one partly filled
    ((2, 4, 1, 1), 2),  # a single pixel
    ((1, 70, 5, 2), 7),  # a last tile of channels that is partly filled
]


def main() -> None:
    torch.manual_seed(0)
    for shape, groups in CASES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for dtype in (torch.float32, torch.bfloat16):
                far = 20 * torch.randn(shape[1]).view(1, -1, 1, 1)  # where squares would cancel
                x = (torch.randn(shape) + far).to(dtype).contiguous(memory_format=layout)
                weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
                found = group_norm_silu(x, groups, weight, bias, 1e-6)
                wide = (x.double(), groups, weight.double(), bias.double(), 1e-6)
                expected = functional.silu(functional.group_norm(*wide))
                # In units of the last place of what is stored, for numbers around one.
                error = ((found - expected).abs() / expected.abs().clamp(min=1)).max()
                units = error / torch.finfo(dtype).eps
                same = found.is_contiguous(memory_format=layout) and found.dtype == dtype
                print(
                    json.dumps({"case": [*shape, str(dtype)], "units": float(units), "same": same})
                )


if __name__ == "__main__":
    main()
