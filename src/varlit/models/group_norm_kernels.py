"""Triton kernels of `group_norm_silu`; importing this imports Triton.

A tile is BLOCK_P pixels of BLOCK_C channels of one image. With `stride_p` and `stride_c` the same
kernels serve both layouts. Statistics are fp32 whatever comes in.
"""

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from typing import Any  # in quotes below: the compiler of kernels reads annotations too


@triton.jit
def tile_statistics(
    x: "Any",
    means: "Any",
    squares: "Any",
    num_pixels: "Any",
    num_channels: "Any",
    stride_p: "Any",
    stride_c: "Any",
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Mean and sum of squares around it, for each channel of a tile.

    Around the tile's own mean, so that nothing cancels where a channel is far from zero.

    Args:
        x: (N, C, P), in either layout.
        means: (N, tiles along P, C) fp32, written.
        squares: In the same form, written.
        num_pixels: P.
        num_channels: C.
        stride_p: From a pixel to the next, in elements.
        stride_c: From a channel to the next.
        BLOCK_P: Pixels of a tile.
        BLOCK_C: Channels of a tile.
    """
    tile, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (p < num_pixels)[:, None] & (c < num_channels)[None, :]
    start = image * num_pixels * num_channels
    offset = p.to(tl.int64)[:, None] * stride_p + c.to(tl.int64)[None, :] * stride_c
    value = tl.load(x + start + offset, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(num_pixels - tile * BLOCK_P, BLOCK_P).to(tl.float32)
    mean = tl.sum(value, axis=0) / count
    around = tl.where(inside, value - mean[None, :], 0.0)
    place = (image * tl.num_programs(0) + tile) * num_channels + c
    tl.store(means + place, mean, mask=c < num_channels)
    tl.store(squares + place, tl.sum(around * around, axis=0), mask=c < num_channels)


@triton.jit
def group_affine(
    means: "Any",
    squares: "Any",
    weight: "Any",
    bias: "Any",
    scale: "Any",
    shift: "Any",
    num_pixels: "Any",
    num_tiles: "Any",
    eps: "Any",
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """Join the statistics of a group's tiles (Chan et al. 1979) to y = x * scale + shift.

    Args:
        means: From `tile_statistics`.
        squares: From `tile_statistics`.
        weight: (C,).
        bias: (C,).
        scale: (N, C) fp32, written.
        shift: (N, C) fp32, written.
        num_pixels: P.
        num_tiles: Along P.
        eps: Added to the variance.
        GROUP: Channels of a group.
        BLOCK_G: The next power of two.
        BLOCK_T: Tiles read at a time.
        BLOCK_P: Pixels of a tile.
    """
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_channels = tl.num_programs(0) * GROUP
    member = tl.arange(0, BLOCK_G)
    c = group * GROUP + member
    start = image * num_tiles * num_channels
    total = num_pixels * GROUP * 1.0
    sums = tl.zeros((BLOCK_T, BLOCK_G), tl.float32)
    for first in range(0, num_tiles, BLOCK_T):
        tile = first + tl.arange(0, BLOCK_T)
        inside = (tile < num_tiles)[:, None] & (member < GROUP)[None, :]
        place = start + tile[:, None] * num_channels + c[None, :]
        count = tl.minimum(num_pixels - tile * BLOCK_P, BLOCK_P).to(tl.float32)[:, None]
        sums += count * tl.load(means + place, mask=inside, other=0.0)
    mean = tl.sum(tl.sum(sums, axis=1), axis=0) / total
    sums = tl.zeros((BLOCK_T, BLOCK_G), tl.float32)
    for first in range(0, num_tiles, BLOCK_T):
        tile = first + tl.arange(0, BLOCK_T)
        inside = (tile < num_tiles)[:, None] & (member < GROUP)[None, :]
        place = start + tile[:, None] * num_channels + c[None, :]
        count = tl.minimum(num_pixels - tile * BLOCK_P, BLOCK_P).to(tl.float32)[:, None]
        apart = tl.load(means + place, mask=inside, other=0.0) - mean
        square = tl.load(squares + place, mask=inside, other=0.0) + count * apart * apart
        sums += tl.where(inside, square, 0.0)
    variance = tl.sum(tl.sum(sums, axis=1), axis=0) / total
    is_member = member < GROUP
    a = tl.load(weight + c, mask=is_member, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    b = tl.load(bias + c, mask=is_member, other=0.0).to(tl.float32) - mean * a
    tl.store(scale + image * num_channels + c, a, mask=is_member)
    tl.store(shift + image * num_channels + c, b, mask=is_member)


@triton.jit
def affine_silu(
    x: "Any",
    y: "Any",
    scale: "Any",
    shift: "Any",
    num_pixels: "Any",
    num_channels: "Any",
    stride_p: "Any",
    stride_c: "Any",
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Write silu(x * scale + shift), computed in fp32 and rounded once.

    Args:
        x: (N, C, P), in either layout.
        y: In the same layout, written.
        scale: (N, C) fp32.
        shift: (N, C) fp32.
        num_pixels: P.
        num_channels: C.
        stride_p: From a pixel to the next, in elements.
        stride_c: From a channel to the next.
        BLOCK_P: Pixels of a tile.
        BLOCK_C: Channels of a tile.
    """
    tile, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (p < num_pixels)[:, None] & (c < num_channels)[None, :]
    start = image * num_pixels * num_channels
    offset = p.to(tl.int64)[:, None] * stride_p + c.to(tl.int64)[None, :] * stride_c
    a = tl.load(scale + image * num_channels + c, mask=c < num_channels, other=0.0)
    b = tl.load(shift + image * num_channels + c, mask=c < num_channels, other=0.0)
    value = tl.load(x + start + offset, mask=inside, other=0.0).to(tl.float32)
    value = value * a[None, :] + b[None, :]
    value = value * tl.sigmoid(value)
    tl.store(y + start + offset, value.to(y.dtype.element_ty), mask=inside)
