"""Official names of our weights, and the order in which the official code lists them.

Official: FoundationVision/VAR @ 78b95394. Ours differ in names only, but for
`adaln_offset` (1, 6, C), which is `ada_gss` (1, 1, 6, C) there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from varlit.models.config import TokenizerConfig

VAR_NAMES = {
    "class_embedding": "class_emb",
    "input_projection": "word_embed",
    "start_position": "pos_start",
    "position": "pos_1LC",
    "level_embedding": "lvl_embed",
    "shared_adaln": "shared_ada_lin.1",
    "head_adaln": "head_nm.ada_lin.1",
    "attention.log_scale": "attn.scale_mul_1H11",
    "attention.qkv": "attn.mat_qkv",
    "attention.projection": "attn.proj",
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "mlp.0": "ffn.fc1",
    "mlp.2": "ffn.fc2",
    "adaln_offset": "ada_gss",
    "adaln": "ada_lin.1",
}

# How torch lists the official modules: own parameters, own buffers, then the children.
SIBLINGS = (
    ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"),
    ("conv_in", "down", "mid", "up", "norm_out", "conv_out"),
    ("ada_gss", "block", "attn", "downsample", "upsample", "ffn", "ada_lin"),
    ("block_1", "attn_1", "block_2"),
    ("ema_vocab_hit_SV", "quant_resi", "embedding"),
    (
        *("pos_start", "pos_1LC", "lvl_1L", "attn_bias_for_masking", "word_embed", "class_emb"),
        *("lvl_embed", "shared_ada_lin", "blocks", "head_nm", "head"),
    ),
    ("scale_mul_1H11", "q_bias", "v_bias", "zero_k_bias", "mat_qkv", "proj"),
)
RANKS = {piece: rank for pieces in SIBLINGS for rank, piece in enumerate(pieces)}


def in_official_order(names: Iterable[str]) -> list[str]:
    """Sort official names as the official code lists them; unranked siblings keep their order."""
    return sorted(
        names,
        key=lambda name: [
            int(piece) if piece.isdecimal() else RANKS.get(piece, 0) for piece in name.split(".")
        ],
    )


def official_var_name(name: str) -> str:
    """Official name of one of our VAR's weights."""
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    prefix, rest = (block[1], block[2]) if block else ("", name)
    stem, _, kind = rest.rpartition(".")
    if kind not in ("weight", "bias"):
        return prefix + VAR_NAMES[rest]
    return f"{prefix}{VAR_NAMES.get(stem, stem)}.{kind}"


def official_tokenizer_name(name: str, config: TokenizerConfig) -> str:
    """Official name of one of our tokenizer's weights."""
    part, _, rest = name.partition(".")
    if part == "quantizer":
        if rest == "codebook.weight":
            return "quantize.embedding.weight"
        index, _, kind = rest.removeprefix("phis.").partition(".")
        holder = {0: f"{index}.", 1: "qresi."}.get(config.num_phi, f"qresi_ls.{index}.")
        return f"quantize.quant_resi.{holder}{kind}"
    if part not in ("encoder", "decoder"):
        return name
    return f"{part}.{_official_autoencoder_name(rest, part, config)}"


def _official_autoencoder_name(rest: str, part: str, config: TokenizerConfig) -> str:
    lowest = len(config.channel_multipliers) - 1
    pieces = rest.split(".")
    if pieces[0] == "middle":
        block = {"0": "block_1", "1": "attn_1", "2": "block_2"}[pieces[1]]
        return ".".join(["mid", block, *_layer(pieces[2:])])
    if pieces[0] not in ("levels", "downsamples", "upsamples"):
        return rest
    stack, index = ("down", int(pieces[1]))
    if part == "decoder":
        # The official decoder counts its levels from the highest resolution.
        stack, index = "up", lowest - index
    if pieces[0] == "downsamples":
        return ".".join([stack, str(index), "downsample", *pieces[2:]])
    if pieces[0] == "upsamples":
        return ".".join([stack, str(index), "upsample", *pieces[2:]])
    layer = int(pieces[2])
    if index == lowest:  # blocks and attention alternate
        kind, layer = ("block", "attn")[layer % 2], layer // 2
    else:
        kind = "block"
    return ".".join([stack, str(index), kind, str(layer), *_layer(pieces[3:])])


def _layer(pieces: list[str]) -> list[str]:
    renamed = {"shortcut": "nin_shortcut", "projection": "proj_out"}
    return [renamed.get(pieces[0], pieces[0]), *pieces[1:]]
