"""What a card could do at most when it draws images: operations and bytes over its two ceilings.

At batch 1 the transformer alone: at each scale the slower of computing and of reading weights, keys
and values, in bf16, AdaLN once. At larger batches transformer and decoder by operations alone.
"""

from dataclasses import dataclass

from var_sizes import Size

PRODUCT_FLOPS = 790e12  # bf16 products of 8192 x 8192 random numbers reach it on H100 and H200
COPY_BYTES_PER_S = {"H200": 4.3e12, "H100": 3.0e12}  # what copies on the device reach
DECODER_FLOP = 393.7e9  # an image of 256 px by official VAR's decoder, torch's count
BYTES_PER_WEIGHT = 2
BATCH_1_TARGETS_S = {"d16": 8e-3, "d30": 20e-3}
IMAGES_PER_S_TARGETS = {"d16": 360.0, "d20": 250.0, "d24": 173.0, "d30": 104.0}


@dataclass(frozen=True)
class Limit:
    """Seconds of a batch."""

    floor_s: float
    target_s: float = 0.0  # 0 = none was set


def limit_of(name: str, size: Size, batch_size: int, card_name: str) -> Limit:
    """Floor and target of a size of `var_sizes`; unknown cards are taken for an H100."""
    if batch_size == 1:
        return Limit(batch_1_floor_s(size, copy_speed(card_name)), BATCH_1_TARGETS_S.get(name, 0.0))
    wanted = IMAGES_PER_S_TARGETS.get(name, 0.0)
    return Limit(batch_size / most_images_per_s(size), batch_size / wanted if wanted else 0.0)


def copy_speed(card_name: str) -> float:
    """Bytes a second that a card's memory gives, by a part of its name."""
    known = (speed for part, speed in COPY_BYTES_PER_S.items() if part in card_name)
    return next(known, COPY_BYTES_PER_S["H100"])


def most_images_per_s(size: Size) -> float:
    """Images a second, guided and decoded, where nothing but operations took time."""
    return PRODUCT_FLOPS / (size.costs.sampling() + DECODER_FLOP)


def batch_1_floor_s(size: Size, bytes_per_s: float) -> float:
    """Seconds of the transformer for one image with guidance, all scales in turn."""
    var, steps = size.var, size.steps
    width, num_codes = var.resolved_width, size.tokenizer.codebook_size
    block_weights = (4 + 2 * var.mlp_ratio) * width**2 * var.depth
    weights = block_weights + width * num_codes
    adaln_bytes = BYTES_PER_WEIGHT * (6 * var.depth + 2) * width**2
    total = adaln_bytes / bytes_per_s
    for offset, length in zip(steps.offsets, steps.lengths, strict=True):
        rows, seen = 2 * length, offset + length
        flop = 2 * rows * weights + 4 * rows * seen * width * var.depth
        cached = 2 * BYTES_PER_WEIGHT * 2 * seen * width * var.depth
        total += max(flop / PRODUCT_FLOPS, (BYTES_PER_WEIGHT * weights + cached) / bytes_per_s)
    return total
