"""Which way to decode: by a fixed order of preference, or by the clock where that is asked for.

A way is the same decoder with the same weights in another precision, layout or kernel. It counts
only where its pictures stay within a bound of those in fp32; one that fails to build is skipped and
named. The order is fixed, so that the pictures of a seed are the same in every run on a machine; a
clock may decide otherwise tomorrow.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from varlit.models.autoencoder import Decoder, NormSiLU
from varlit.models.device_clock import seconds_of
from varlit.models.group_norm_silu import group_norm_silu
from varlit.models.vqvae import VQVAE
from varlit.models.weight_versions import weight_versions

T = TypeVar("T")
DecoderWay = Literal["fp32", "bf16", "bf16_fused", "bf16_compiled", "bf16_compiled_nhwc"]
Decode = Callable[[Tensor], Tensor]

EAGER_WAYS: tuple[DecoderWay, ...] = ("fp32", "bf16", "bf16_fused")
ALL_WAYS: tuple[DecoderWay, ...] = (*EAGER_WAYS, "bf16_compiled", "bf16_compiled_nhwc")

# Best first, where the device computes in bf16; elsewhere only fp32 is sure to gain.
PREFERENCE: tuple[DecoderWay, ...] = (
    "bf16_compiled_nhwc",
    "bf16_fused",
    "bf16_compiled",
    "bf16",
    "fp32",
)
BF16_FROM_CAPABILITY = (8, 0)  # Ampere

# Two of the 255 steps from black to white, on the mean over all pixels.
MAX_DIFFERENCE = 4 / 255
MAX_ROWS = 64
MAX_ELEMENTS = 2**30  # of a layer: kernels that count in 32 bits stop at 2^31
WARMUP_RUNS, ROUNDS = 2, 3


@dataclass(frozen=True)
class DecoderTiming:
    """One way to decode a batch."""

    way: DecoderWay
    seconds: float
    difference: float
    """Mean absolute difference to fp32, for images in -1..1."""


@dataclass(frozen=True)
class DecoderChoice:
    """What was tried, and what is taken."""

    timings: tuple[DecoderTiming, ...]
    """Fastest first, those out of bounds included."""
    skipped: tuple[str, ...]
    """`way: why`, for those that could not be built."""

    @property
    def way(self) -> DecoderWay:
        """The fastest of those close enough to fp32."""
        return next(t.way for t in self.timings if t.difference <= MAX_DIFFERENCE)


def build_decoder(tokenizer: VQVAE, way: DecoderWay) -> Decode:
    """A function from quantized latent maps to images, as `VQVAE.decode_features`.

    Args:
        tokenizer: Left as it is; the weights of other precisions are copies.
        way: `fp32` is the tokenizer itself. `bf16` its decoder in bfloat16; `fused` with group norm
            and SiLU in one kernel and channels_last (needs Triton); `compiled` by torch.compile,
            `nhwc` with channels_last.
    """
    if way == "fp32":
        return tokenizer.decode_features
    decoder = copy.deepcopy(tokenizer.decoder).to(torch.bfloat16).eval().requires_grad_(False)
    if way in ("bf16_fused", "bf16_compiled_nhwc"):
        decoder.to(memory_format=torch.channels_last)
    if way == "bf16_fused":
        _fuse_norms(decoder)
    run: Callable[[Tensor], Tensor] = decoder
    if way.startswith("bf16_compiled"):
        run = torch.compile(decoder, fullgraph=True, dynamic=False)
    is_nhwc = way in ("bf16_fused", "bf16_compiled_nhwc")
    layout = torch.channels_last if is_nhwc else torch.contiguous_format
    rows = rows_at_a_time(tokenizer)

    @torch.no_grad()
    def decode(f_hat: Tensor) -> Tensor:
        with torch.autocast(f_hat.device.type, enabled=False):
            parts = []
            for part in f_hat.float().split(rows):
                features = tokenizer.post_quant_conv(part).bfloat16()
                parts.append(run(features.contiguous(memory_format=layout)))
        images = parts[0] if len(parts) == 1 else torch.cat(parts)
        return images.float().contiguous().clamp(-1, 1)

    return decode


def prefer_decoder(
    tokenizer: VQVAE, batch_size: int, ways: Sequence[DecoderWay] = ALL_WAYS
) -> DecoderWay:
    """The first way of the fixed order that this device can build and whose pictures are right.

    Looked into once for the weights of a tokenizer, at the first batch size: another size does not
    decode in another way.

    Args:
        tokenizer: Whose weights and device count.
        batch_size: Images at a time.
        ways: What to choose from; fp32 always is.
    """
    device, rows = tokenizer.last_layer.device, min(batch_size, rows_at_a_time(tokenizer))
    wanted = tuple(way for way in preference(device) if way in ("fp32", *ways))
    key = (str(device), wanted, weight_versions(tokenizer))
    found = _PREFERENCES.setdefault(tokenizer, {})
    if key not in found:
        found[key] = _first_right(tokenizer, rows, wanted)
    return found[key]


def preference(device: torch.device) -> tuple[DecoderWay, ...]:
    """The ways that suit a device, best first."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < BF16_FROM_CAPABILITY:
        return ("fp32",)
    return PREFERENCE


def choose_decoder(
    tokenizer: VQVAE, batch_size: int, ways: Sequence[DecoderWay] = ALL_WAYS
) -> DecoderChoice:
    """Time the ways on this tokenizer's device, once for its weights and each shape in a process.

    Args:
        tokenizer: Whose weights and device count.
        batch_size: Images at a time.
        ways: What to try; fp32 always is, and wins where it is the only one in bounds.
    """
    wanted = tuple(dict.fromkeys(("fp32", *ways)))
    device, rows = tokenizer.last_layer.device, min(batch_size, rows_at_a_time(tokenizer))
    key = (str(device), rows, wanted, weight_versions(tokenizer))
    found = _CHOICES.setdefault(tokenizer, {})
    if key not in found:
        found[key] = _measure(tokenizer, rows, wanted)
    return found[key]


def rows_at_a_time(tokenizer: VQVAE) -> int:
    """Images that a decoder takes in one go, a power of two: 64 at 256 px, 16 at 512 px."""
    config = tokenizer.config
    width = config.channels * max(config.channel_multipliers[:2])
    fitting = max(1, MAX_ELEMENTS // (width * config.image_size**2))
    return min(MAX_ROWS, 1 << (fitting.bit_length() - 1))


# By the tokenizer itself: one of the same shape and other weights may leave the bound.
_CHOICES: WeakKeyDictionary[VQVAE, dict[tuple[object, ...], DecoderChoice]] = WeakKeyDictionary()
_PREFERENCES: WeakKeyDictionary[VQVAE, dict[tuple[object, ...], DecoderWay]] = WeakKeyDictionary()


@torch.no_grad()
def _first_right(tokenizer: VQVAE, rows: int, ways: Sequence[DecoderWay]) -> DecoderWay:
    if ways[0] == "fp32":
        return "fp32"
    f_hat = _pictures(tokenizer, rows)
    expected = tokenizer.decode_features(f_hat)

    def is_right(way: DecoderWay) -> bool:
        return _difference(build_decoder(tokenizer, way)(f_hat), expected) <= MAX_DIFFERENCE

    return next(way for way in ways if way == "fp32" or _tried(partial(is_right, way)) is True)


def _tried(attempt: Callable[[], T]) -> T | str:
    """What an attempt gives, or why it failed: compilers fail in many ways, each one way less."""
    try:
        return attempt()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return _first_line(error)
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@torch.no_grad()
def _measure(tokenizer: VQVAE, rows: int, ways: Sequence[DecoderWay]) -> DecoderChoice:
    f_hat = _pictures(tokenizer, rows)
    expected = tokenizer.decode_features(f_hat)
    timings, skipped = [], []
    for way in ways:
        if way == "fp32":
            timings.append(_time(tokenizer.decode_features, way, f_hat, expected))
            continue
        found = _tried(partial(_build_and_time, tokenizer, way, f_hat, expected))
        if isinstance(found, str):
            skipped.append(f"{way}: {found}")
        else:
            timings.append(found)
    return DecoderChoice(tuple(sorted(timings, key=lambda t: t.seconds)), tuple(skipped))


def _build_and_time(
    tokenizer: VQVAE, way: DecoderWay, f_hat: Tensor, expected: Tensor
) -> DecoderTiming:
    return _time(build_decoder(tokenizer, way), way, f_hat, expected)


def _time(decode: Decode, way: DecoderWay, f_hat: Tensor, expected: Tensor) -> DecoderTiming:
    for _ in range(WARMUP_RUNS):
        images = decode(f_hat)
    difference = _difference(images, expected)
    seconds = min(seconds_of(lambda: decode(f_hat), f_hat.device) for _ in range(ROUNDS))
    return DecoderTiming(way, seconds, difference)


def _difference(images: Tensor, expected: Tensor) -> float:
    return float((images - expected).abs().mean())


def _pictures(tokenizer: VQVAE, rows: int) -> Tensor:
    """Latent maps of random tokens, which leave the random stream alone.  # (rows, C, h, w)"""
    generator = torch.Generator().manual_seed(0)
    size = (rows, tokenizer.scales.num_tokens)
    tokens = torch.randint(tokenizer.config.codebook_size, size, generator=generator)
    return tokenizer.quantizer.decode(tokens.to(tokenizer.last_layer.device))


def _fuse_norms(decoder: Decoder) -> None:
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("Triton is not installed")
    for module in decoder.modules():
        if isinstance(module, NormSiLU):
            module.fused = group_norm_silu


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
