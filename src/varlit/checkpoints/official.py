"""Official VAR checkpoints, read and written: the same numbers under other names.

Official: FoundationVision/VAR @ 78b95394. Reading needs no recipe, shapes tell the model; what is
derived (levels, mask, zero biases) is checked when read and made again when written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from varlit.checkpoints.official_names import (
    in_official_order,
    official_tokenizer_name,
    official_var_name,
)
from varlit.checkpoints.official_pickles import read_pickle, write_pickle
from varlit.checkpoints.official_shapes import (
    HIT_STATISTIC,
    Search,
    Weights,
    kind_of,
    recognise_tokenizer,
    recognise_var,
)
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig
from varlit.models.files import write_weights
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

SURPLUS_FILE = "official.safetensors"
M = TypeVar("M", VAR, VQVAE)


@dataclass(frozen=True)
class OfficialModels:
    """What an official file held, frozen and in eval mode."""

    tokenizer: VQVAE | None
    var: VAR | None
    surplus: dict[str, Tensor]  # of the tokenizer: its statistic, which our network has no use for
    notes: tuple[str, ...] = ()  # sentences for the user


def load_official(
    path: Path | str, scales: tuple[int, ...] | None = None, search: Search = "euclidean"
) -> OfficialModels:
    """Read an official state dict, or a training checkpoint `ar-ckpt-*.pth` with its two models.

    Args:
        path: The file; it must stay as it is while the networks live, for they read from it.
        scales: Sides of the token maps, where the file does not tell them.
        search: How the tokenizer finds the nearest code, which no file tells.

    Raises:
        UserError: If the file is no such checkpoint, is damaged or incomplete, or holds code.
    """
    path = Path(path)
    parts = {
        kind_of(part, where): (part, where) for part, where in _parts(read_pickle(path), str(path))
    }
    notes: list[str] = []
    var, tokenizer, surplus = None, None, {}
    if "var" in parts:
        weights, where = parts["var"]
        var = _read_var(weights, where, scales, notes)
        scales = var.scales.sides
    if "tokenizer" in parts:
        weights, where = parts["tokenizer"]
        shape = recognise_tokenizer(weights, where, scales, search)
        notes += shape.notes
        weights = _single_precision(weights, where, notes)
        surplus = {k: v for k, v in weights.items() if k == HIT_STATISTIC}
        check_surplus(surplus, shape.config, where)
        with shapes_only():
            empty = VQVAE(shape.config)
        tokenizer = _fill(empty, weights, surplus, where)
    if var is not None and tokenizer is not None:
        speak(var, tokenizer.config)
    return OfficialModels(tokenizer, var, surplus, tuple(notes))


def save_official(network: VQVAE | VAR, path: Path, surplus: Weights | None = None) -> int:
    """Write a plain state dict that the official code loads with strict=True.

    Args:
        network: Tokenizer or VAR.
        path: The file; it appears whole or not at all.
        surplus: `OfficialModels.surplus` of a tokenizer that came from the official code.

    Returns:
        How many tensors were written.

    Raises:
        UserError: If the file cannot be written, the surplus is not of this network, or its order
            is not the official one.
    """
    if isinstance(network, VAR) and network.config.order == "raster":
        raise UserError("official VAR has no var.order raster; convert a VAR of next_scale")
    state = official_state(network, surplus)
    write_pickle(state, path)
    return len(state)


def official_state(network: VQVAE | VAR, surplus: Weights | None = None) -> dict[str, Tensor]:
    """Weights and buffers of a network, fp32, under official names and in official order."""
    rename = _names(network)
    state = {
        rename(name): _official_form(name, tensor.detach().cpu().float().contiguous())
        for name, tensor in network.state_dict().items()
    }
    if isinstance(network, VAR):
        state |= derived_buffers(network)
    else:
        surplus = surplus or {}
        check_surplus(surplus, network.config, SURPLUS_FILE)
        shape = network.scales.num_scales, network.config.codebook_size
        state[HIT_STATISTIC] = surplus.get(HIT_STATISTIC, torch.zeros(shape))
    return {name: state[name] for name in in_official_order(state)}


def derived_buffers(var: VAR) -> dict[str, Tensor]:
    """Buffers of the official VAR, all of them functions of its shape."""
    mask = var.scales.block_causal_mask()
    bias = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    zeros = torch.zeros(var.config.resolved_width)
    return {
        "lvl_1L": var.scales.levels()[None],
        "attn_bias_for_masking": bias[None, None],
        **{f"blocks.{i}.attn.zero_k_bias": zeros for i in range(var.config.depth)},
    }


def speak(var: VAR, tokenizer: TokenizerConfig) -> None:
    """Tell a VAR which tokenizer's tokens it speaks; it keeps its own scales.

    Raises:
        UserError: If their codes differ in number or dimension.
    """
    expected = var.tokenizer_config.codebook_size, var.tokenizer_config.codebook_dim
    got = tokenizer.codebook_size, tokenizer.codebook_dim
    if got != expected:
        raise UserError(
            f"the VAR speaks {expected[0]:,} codes of dimension {expected[1]}, and the tokenizer "
            f"has {got[0]:,} of dimension {got[1]}; give the tokenizer that it was trained with"
        )
    var.tokenizer_config = replace(tokenizer, scales=var.scales.sides)


def save_surplus(surplus: Weights, folder: Path) -> None:
    """Keep beside a converted tokenizer what only the official code has a place for."""
    if surplus:
        # Not in place: the statistic may itself be read from the file that is replaced.
        write_weights({k: v.contiguous() for k, v in surplus.items()}, folder / SURPLUS_FILE)


def read_surplus(folder: Path) -> dict[str, Tensor]:
    """Read what `save_surplus` kept; nothing where a tokenizer was trained here.

    Raises:
        UserError: If the file is damaged.
    """
    path = folder / SURPLUS_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        return {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); remove it to write zeros instead") from None


def check_surplus(surplus: Weights, config: TokenizerConfig, where: str) -> None:
    """Refuse a statistic that is not of these codes; scales may have been changed since."""
    for name, tensor in surplus.items():
        if name != HIT_STATISTIC or tensor.dim() != 2 or tensor.shape[1] != config.codebook_size:
            raise UserError(
                f"{where}: `{name}` has shape {list(tensor.shape)}, expected {HIT_STATISTIC} "
                f"(scales, {config.codebook_size}); remove it, it is a statistic only"
            )


def _parts(content: object, where: str) -> list[tuple[Weights, str]]:
    """The state dicts in a file, each with how messages call it."""
    if not isinstance(content, dict):
        raise UserError(f"{where} holds a {type(content).__name__}, expected a dict of weights")
    if "pytorch-lightning_version" in content:
        raise UserError(
            f"{where} is a checkpoint of Lightning, as varlit writes while it trains; give the "
            "folder of the run instead, with --to official"
        )
    trainer = content.get("trainer", content)
    if isinstance(trainer, dict) and "var_wo_ddp" in trainer:
        names = [name for name in ("var_wo_ddp", "vae_local") if name in trainer]
        return [_weights_only(trainer[name], f"{where} ({name})") for name in names]
    if "trainer" in content:
        raise UserError(f"{where} is a training checkpoint without `trainer.var_wo_ddp`")
    return [_weights_only(content, where)]


def _weights_only(part: object, where: str) -> tuple[Weights, str]:
    if not isinstance(part, dict):
        raise UserError(f"{where} is a {type(part).__name__}, expected a dict of weights")
    for name, value in part.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{where}: `{name}` is a {type(value).__name__}, expected a tensor; save the "
                "state dict of the model alone"
            )
        if value.is_meta or value.layout != torch.strided:
            raise UserError(
                f"{where}: `{name}` is a {value.layout} tensor on {value.device}, expected plain "
                "numbers; save the state dict of the model as it is on the CPU"
            )
    return cast(dict[str, Tensor], part), where


def _read_var(
    weights: Weights, where: str, scales: tuple[int, ...] | None, notes: list[str]
) -> VAR:
    shape = recognise_var(weights, where, scales)
    weights = _single_precision(weights, where, notes)
    with shapes_only():
        empty = VAR(shape.config, shape.tokenizer, shape.num_classes)
    derived = {k: v for k, v in derived_buffers(empty).items() if k in weights}
    for name, expected in derived.items():
        if not torch.equal(weights[name].to(expected.dtype), expected):
            raise UserError(
                f"{where}: `{name}` is not what the scales {list(shape.tokenizer.scales)} give, so "
                "the model would not do the same here; give its own --scales"
            )
    return _fill(empty, weights, derived, where)


def _single_precision(weights: Weights, where: str, notes: list[str]) -> Weights:
    """The weights in fp32, with a note where they were not."""
    integers = [k for k, v in weights.items() if not v.is_floating_point() and k != "lvl_1L"]
    if integers:
        raise UserError(
            f"{where}: `{integers[0]}` holds {weights[integers[0]].dtype}, expected floating point"
        )
    others = {v.dtype for v in weights.values() if v.is_floating_point()} - {torch.float32}
    if not others:
        return weights
    dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
    notes.append(f"{where} is in {dtypes}; written as float32")
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}


def _fill(network: M, weights: Weights, known: Weights, where: str) -> M:
    """Put official weights in the place of a meta network's own, all of them and no others."""
    rename = _names(network)
    there = {rename(name): name for name in network.state_dict()}
    kind = f"a {type(network).__name__} of this shape"
    if missing := [name for name in there if name not in weights]:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(there)} weights of {kind}, such as "
            f"`{missing[0]}`; the file is incomplete, save or download it again"
        )
    if surplus := [name for name in weights if name not in there and name not in known]:
        raise UserError(
            f"{where} has {len(surplus)} weights that {kind} has no place for, such as "
            f"`{surplus[0]}`; it is not the official model, or a changed one"
        )
    state = {}
    for name, tensor in network.state_dict().items():
        found, expected = weights[rename(name)], _official_form(name, tensor).shape
        if found.shape != expected:
            raise UserError(
                f"{where}: `{rename(name)}` has shape {list(found.shape)}, expected "
                f"{list(expected)} in {kind}; it is not the official model, or a changed one"
            )
        state[name] = found.reshape(tensor.shape)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _names(network: nn.Module) -> Callable[[str], str]:
    """From our name of a weight to the official one."""
    if isinstance(network, VQVAE):
        config = network.config
        return lambda name: official_tokenizer_name(name, config)
    return official_var_name


def _official_form(name: str, tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0) if name.endswith("adaln_offset") else tensor
