"""Group norm and SiLU in one go, for decoding on CUDA.

Torch's group norm gives each group of each image one block of threads, which leaves most of a GPU
idle at small batches, and leaves channels_last. Here an image is cut into tiles: statistics of the
tiles, joined by group, then one pass that scales, shifts and applies SiLU. Forward only.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 4096  # elements that one block of threads holds in its registers
TILE_CHANNELS = 64  # in channels_last: 128 bytes of bf16 lie side by side
TILES_AT_A_TIME = 64


def group_norm_silu(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """silu(group_norm(x)) with statistics in fp32, by Triton.

    Args:
        x: (B, C, h, w); contiguous or channels_last, which the result keeps.
        num_groups: Divides C.
        weight: (C,).
        bias: (C,).
        eps: Added to the variance.

    Returns:
        (B, C, h, w) in the type of `x`.
    """
    # Not at the top: it imports Triton, which only CUDA builds of torch bring along.
    from varlit.models.group_norm_kernels import affine_silu, group_affine, tile_statistics

    is_channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    x = x if is_channels_last else x.contiguous()
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    block_c = min(TILE_CHANNELS, _power_of_two(channels)) if is_channels_last else 1
    block_p = min(TILE // block_c, _power_of_two(pixels))
    tiles = -(-pixels // block_p)
    layout = (pixels, channels, *((channels, 1) if is_channels_last else (1, pixels)))
    grid = (tiles, -(-channels // block_c), batch)
    size = channels // num_groups
    y = torch.empty_like(x)
    means, squares = x.new_empty((2, batch, tiles, channels), dtype=torch.float32)
    scale, shift = x.new_empty((2, batch, channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        tile_statistics[grid](x, means, squares, *layout, BLOCK_P=block_p, BLOCK_C=block_c)
        group_affine[(num_groups, batch)](
            *(means, squares, weight, bias, scale, shift, pixels, tiles, eps),
            GROUP=size,
            BLOCK_G=_power_of_two(size),
            BLOCK_T=min(TILES_AT_A_TIME, _power_of_two(tiles)),
            BLOCK_P=block_p,
        )
        affine_silu[grid](x, y, scale, shift, *layout, BLOCK_P=block_p, BLOCK_C=block_c)
    return y


def _power_of_two(number: int) -> int:
    """The next one, not below `number`."""
    return 1 << (number - 1).bit_length()
