"""Recognise an official model from the names and shapes of its weights alone.

What no shape tells: the kind of code search, phi's ratio, drop path and the initialisation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.ops.scales import OFFICIAL_SCALES, Scales

Weights = Mapping[str, Tensor]
Search = Literal["euclidean", "cosine"]

HIT_STATISTIC = "quantize.ema_vocab_hit_SV"
PHI = "quantize.quant_resi."
HEAD_DIM = 64  # of every official VAR


@dataclass(frozen=True)
class TokenizerShape:
    """What the weights of an official VQVAE tell."""

    config: TokenizerConfig
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VARShape:
    """What the weights of an official VAR tell; of its tokenizer, the codes and the scales."""

    config: VARConfig
    tokenizer: TokenizerConfig
    num_classes: int


def kind_of(weights: Weights, where: str) -> Literal["tokenizer", "var"]:
    """Say which of the two official models these weights are of.

    Raises:
        UserError: If they are of neither.
    """
    if any(name.startswith(("blocks.", "word_embed.", "pos_1LC")) for name in weights):
        return "var"
    if any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in weights):
        return "tokenizer"
    sample = ", ".join(list(weights)[:3]) or "nothing"
    raise UserError(
        f"{where} is neither an official VQVAE nor an official VAR; it holds {sample}. Give a file "
        "such as vae_ch160v4096z32.pth or var_d16.pth"
    )


def recognise_tokenizer(
    weights: Weights,
    where: str,
    scales: tuple[int, ...] | None = None,
    search: Search = "euclidean",
) -> TokenizerShape:
    """Read the shape of an official VQVAE.

    Args:
        weights: By official name; meta tensors will do.
        where: How messages call them.
        scales: Sides of the token maps; without them those of 256 px (10 scales) or 1024 px (14).
        search: How the nearest code is found, which no shape tells.

    Raises:
        UserError: If a weight that tells is missing or odd, or if the scales cannot be told.
    """
    channels = _size(weights, where, "encoder.conv_in.weight", 0)
    widths = [
        _size(weights, where, f"encoder.down.{i}.block.0.conv1.weight", 0)
        for i in range(max(_count(weights, "encoder.down."), 1))
    ]
    if any(width % channels for width in widths):
        raise UserError(
            f"{where}: the levels have {widths} channels, expected multiples of {channels}; "
            "this is no VQVAE that the official code makes"
        )
    found, notes = _scales_of_tokenizer(weights, where, scales)
    config = TokenizerConfig(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        num_res_blocks=_count(weights, "encoder.down.0.block."),
        codebook_size=_size(weights, where, "quantize.embedding.weight", 0),
        codebook_dim=_size(weights, where, "quantize.embedding.weight", 1),
        scales=found,
        num_phi=_num_phi(weights, where),
        search=search,
    )
    return TokenizerShape(config, notes)


def recognise_var(weights: Weights, where: str, scales: tuple[int, ...] | None = None) -> VARShape:
    """Read the shape of an official VAR.

    Args:
        weights: By official name; meta tensors will do.
        where: How messages call them.
        scales: Sides of the token maps, needed where the number of positions does not tell them.

    Raises:
        UserError: If a weight that tells is missing or odd, or if the scales cannot be told.
    """
    width = _size(weights, where, "head.weight", 1)
    depth = _count(weights, "blocks.")
    scale_name = next((name for name in weights if name.endswith("scale_mul_1H11")), None)
    if scale_name is None and width % HEAD_DIM:
        raise UserError(
            f"{where} has width {width}, expected a multiple of {HEAD_DIM}: without QK l2 norm "
            "the weights do not tell the heads, and official ones have 64 dimensions"
        )
    heads = width // HEAD_DIM if scale_name is None else _size(weights, where, scale_name, 1)
    hidden = _size(weights, where, "blocks.0.ffn.fc1.weight", 0)
    config = VARConfig(
        depth=depth,
        width=0 if width == HEAD_DIM * depth else width,
        num_heads=0 if heads == depth else heads,
        mlp_ratio=hidden / width,
        qk_l2_norm=scale_name is not None,
        shared_adaln=any(name.endswith(".ada_gss") for name in weights),
    )
    tokenizer = TokenizerConfig(
        codebook_size=_size(weights, where, "head.weight", 0),
        codebook_dim=_size(weights, where, "word_embed.weight", 1),
        scales=_scales_of_var(weights, where, scales),
    )
    return VARShape(config, tokenizer, _size(weights, where, "class_emb.weight", 0) - 1)


def _num_phi(weights: Weights, where: str) -> int:
    """1 = a single phi, K = partially shared, 0 = one per scale."""
    if f"{PHI}qresi.weight" in weights:
        return 1
    num_shared = _count(weights, f"{PHI}qresi_ls.")
    if not num_shared and not _count(weights, PHI):
        raise UserError(_lacks(where, f"{PHI}qresi_ls.0.weight"))
    return num_shared


def _scales_of_tokenizer(
    weights: Weights, where: str, given: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The scales, and notes on them for the user."""
    num_own = _count(weights, PHI)
    if num_own and given and len(given) != num_own:
        raise UserError(
            f"{where} has a phi convolution for each of {num_own} scales; the scales "
            f"{_listed(given)} are {len(given)}"
        )
    told = num_own
    if HIT_STATISTIC in weights:
        told = told or _size(weights, where, HIT_STATISTIC, 0)
    if given:
        changed = f"{where} was made with {told} scales; now it has the {len(given)} given"
        return given, (changed,) if told not in (0, len(given)) else ()
    if not told:
        unsure = f"{where} does not tell its scales; taken as those of 256 px, see --scales"
        return OFFICIAL_SCALES[256], (unsure,)
    for px in (256, 1024):  # 512 px has ten scales too, with the same tokenizer
        if len(OFFICIAL_SCALES[px]) == told:
            return OFFICIAL_SCALES[px], ()
    raise UserError(
        f"{where} has {told} scales, and no official list has as many; say which with --scales, "
        "such as --scales 1,2,3,4"
    )


def _scales_of_var(weights: Weights, where: str, given: tuple[int, ...] | None) -> tuple[int, ...]:
    num_tokens = _size(weights, where, "pos_1LC", 1)
    num_scales = _size(weights, where, "lvl_embed.weight", 0)
    has = f"{where} has {num_tokens:,} positions on {num_scales} scales"
    known = [Scales(sides) for sides in OFFICIAL_SCALES.values()]
    fitting = [s for s in known if (s.num_tokens, s.num_scales) == (num_tokens, num_scales)]
    found = given or _sides_of_levels(weights) or (fitting[0].sides if fitting else None)
    if found is None:
        raise UserError(f"{has}, which is no official list; say which with --scales")
    scales = Scales(found)
    if (scales.num_tokens, scales.num_scales) != (num_tokens, num_scales):
        raise UserError(
            f"{has}; the scales {_listed(found)} make {scales.num_tokens:,} on "
            f"{scales.num_scales}. Give --scales that fit, or leave them out"
        )
    return scales.sides


def _sides_of_levels(weights: Weights) -> tuple[int, ...] | None:
    """The scales as `lvl_1L` counts them, where it is there and says anything."""
    levels = weights.get("lvl_1L")
    if levels is None or levels.is_meta or levels.dtype != torch.int64 or not levels.numel():
        return None
    if levels.min() < 0 or levels.max() >= levels.numel():
        return None
    lengths = torch.bincount(levels.flatten()).tolist()
    sides = tuple(math.isqrt(length) for length in lengths)
    if any(side * side != length for side, length in zip(sides, lengths, strict=True)):
        return None
    return sides


def _size(weights: Weights, where: str, name: str, axis: int) -> int:
    """One side of the weight `name`."""
    if name not in weights:
        raise UserError(_lacks(where, name))
    if weights[name].dim() <= axis:
        raise UserError(
            f"{where}: `{name}` has shape {list(weights[name].shape)}, expected more dimensions; "
            "this is not the official model"
        )
    if not weights[name].numel():
        raise UserError(
            f"{where}: `{name}` has shape {list(weights[name].shape)} and so no numbers; "
            "save or download the file again"
        )
    return weights[name].shape[axis]


def _lacks(where: str, name: str) -> str:
    return (
        f"{where} lacks `{name}`, without which the shape of the model cannot be told; the file is "
        "incomplete, save or download it again"
    )


def _count(weights: Weights, prefix: str) -> int:
    """How many numbered parts there are under `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return max((int(found[1]) + 1 for name in weights if (found := pattern.match(name))), default=0)


def _listed(scales: tuple[int, ...]) -> str:
    return ",".join(map(str, scales))
