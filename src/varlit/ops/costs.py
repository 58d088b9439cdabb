"""What a transformer costs, by formula: floating-point operations and bytes.

A multiply-add counts as two operations. Attention is counted over the pairs that the block-causal
mask allows, not over the dense square. Checked against torch's counter in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from varlit.ops.steps import Steps

BYTES_PER_TOKEN = 2  # uint16 in the cache
# fp32 weights, gradients and AdamW's two moments.
BYTES_PER_TRAINED_PARAMETER = 16
BF16_PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0}
"""Dense bf16 matrix products by the makers' data sheets, in TFLOP/s, by a part of the name."""
ASSUMED_SHARE = 0.4
"""Of that rate. Assumed: our own share is not measured yet on any card."""


@dataclass(frozen=True)
class TransformerShape:
    """The numbers that the formulas need."""

    depth: int
    width: int
    mlp_width: int
    vocab_size: int
    steps: Steps


@dataclass(frozen=True)
class TransformerCosts:
    """Operations for one image, by part of the forward pass."""

    linear: float
    attention: float
    head: float
    adaln: float

    @property
    def forward(self) -> float:
        """One forward pass over all tokens."""
        return self.linear + self.attention + self.head + self.adaln

    @property
    def training(self) -> float:
        """Forward and backward, the latter twice the former."""
        return 3 * self.forward

    def sampling(self, is_guided: bool = True) -> float:
        """One image with a key-value cache; guidance runs a second, unconditional row."""
        return self.forward * (2 if is_guided else 1)


def card_peak_tflops(card_name: str) -> float:
    """What a card can do at most in bf16, in TFLOP/s; 0 where it is not in the table."""
    return next((peak for part, peak in BF16_PEAK_TFLOPS.items() if part in card_name), 0.0)


def attended_pairs(steps: Steps) -> int:
    """Pairs of query and key that the block-causal mask allows."""
    ends = [o + n for o, n in zip(steps.offsets, steps.lengths, strict=True)]
    return sum(length * end for length, end in zip(steps.lengths, ends, strict=True))


def transformer_costs(shape: TransformerShape) -> TransformerCosts:
    """Operations of one image at the given shape."""
    width, num_tokens = shape.width, shape.steps.num_tokens
    per_token = 2 * width * (4 * width + 2 * shape.mlp_width)
    return TransformerCosts(
        linear=float(per_token * num_tokens * shape.depth),
        attention=float(4 * width * attended_pairs(shape.steps) * shape.depth),
        head=float(2 * width * shape.vocab_size * num_tokens),
        adaln=float(2 * width * (6 * width * shape.depth + 2 * width)),
    )


def cache_bytes(steps: Steps, num_images: int, num_crops: int = 1) -> int:
    """Size of a token cache on disk, labels aside."""
    return BYTES_PER_TOKEN * steps.num_tokens * num_images * num_crops


def key_value_bytes(shape: TransformerShape, bytes_per_number: int = 2) -> int:
    """Keys and values of one row of a sampled batch."""
    return 2 * shape.depth * shape.width * shape.steps.num_tokens * bytes_per_number
