"""The cost card of a stage: exact parameters, operations, an estimate of memory, the steps.

Networks are built on torch's meta device, which has shapes and no numbers, so that d30 takes a
second and no memory.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from varlit.cli.recipes import conf_folder, read_yaml
from varlit.models.blocks import Block
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import read_model_config
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.costs import BYTES_PER_TRAINED_PARAMETER, TransformerShape, transformer_costs

GIB = 2**30
BYTES_OF_AN_AVERAGE = 4
NUM_IMAGES = {"DigitsDataModule": 1_500, "ImageNetDataModule": 1_281_167}
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Traced:
    """One forward pass on the meta device."""

    flops: float
    saved_bytes: float
    """What autograd keeps for the backward pass, in fp32."""


def tokenizer_card(settings: Mapping[str, Any]) -> str:
    """Describe what a run of stage 1 costs.

    Args:
        settings: Resolved settings with `model`, `data` and `trainer`.
    """
    model, data = settings.get("model") or {}, _data(settings)
    config = TokenizerConfig.of(model.get("tokenizer") or {})
    side = config.image_size
    with shapes_only():
        network = VQVAE(config)
        encoder = traced(lambda: network.encoder(torch.empty(1, 3, side, side)), network)
        latent = torch.empty(1, config.codebook_dim, side // config.stride, side // config.stride)
        decoder = traced(lambda: network.decoder(latent), network)
    parameters, averaged = count(network), _ema(model)
    trained = f"{_millions(parameters)} ({_millions(count(network.encoder))} encoder, "
    trained += f"{_millions(count(network.decoder))} decoder, codebook {config.codebook_size} x "
    trained += f"{config.codebook_dim})"
    discriminator = _discriminator(model)
    if discriminator:
        trained += f" + {_millions(discriminator)} discriminator"
    passes, saved = encoder.flops + decoder.flops, encoder.saved_bytes + decoder.saved_bytes
    loss = model.get("loss") or {}
    beyond = " + LPIPS" if loss.get("perceptual_weight", 1.0) else ""
    beyond += " + discriminator" if discriminator else ""
    rows = {
        "parameters": trained,
        "tokens": _tokens(config),
        "compute": f"{_flops(encoder.flops)} to encode, {_flops(decoder.flops)} to decode an image;"
        f" {_flops(3 * passes)}{beyond} to train on it",
        "memory": _memory(parameters + discriminator, averaged, saved, settings),
        **_length(settings, data, NUM_IMAGES.get(str(data.get("class_path")).rsplit(".", 1)[-1])),
    }
    return card("tokenizer", rows)


def var_card(settings: Mapping[str, Any]) -> str:
    """Describe what a run of stage 2 costs.

    Args:
        settings: Resolved settings with `model`, `data` and `trainer`.
    """
    model, data = settings.get("model") or {}, _data(settings)
    config = VARConfig.of(model.get("var") or {})
    cache = _cache(data)
    tokenizer, num_classes, num_images = cache.tokenizer, cache.num_classes, cache.num_images
    with shapes_only():
        network = VAR(config, tokenizer, num_classes)
        saved = _block_bytes(network) * config.depth
    width, scales = config.resolved_width, network.scales
    costs = transformer_costs(
        TransformerShape(
            config.depth, width, round(config.mlp_ratio * width), tokenizer.codebook_size, scales
        )
    )
    # Logits, and their softmax in fp32.
    saved += 2 * 4 * scales.num_tokens * tokenizer.codebook_size
    parameters = count(network)
    rows = {
        "parameters": f"{_millions(parameters)} (depth {config.depth} -> width {width}, "
        f"{config.resolved_heads} heads, drop path {config.resolved_drop_path:.3g})",
        "tokens": _tokens(tokenizer),
        "cache": cache.remark,
        "compute": f"{_flops(costs.forward)} forward, {_flops(costs.training)} to train on an "
        f"image; {_flops(costs.sampling())} to draw one with guidance, decoder aside",
        "memory": _memory(parameters, _ema(model), saved, settings),
        **_length(settings, data, num_images),
    }
    return card("var", rows)


def card(title: str, rows: Mapping[str, str]) -> str:
    """Lay out rows under a title."""
    return "\n".join([f"  [{title}]", *(f"  {name:<12} {text}" for name, text in rows.items())])


def count(network: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def traced(forward: Callable[[], Any], network: nn.Module) -> Traced:
    """Run a forward pass and note its operations and what autograd keeps of it."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            forward()
        return Traced(counter.get_total_flops(), _storage_bytes(kept.values()))


def _storage_bytes(tensors: Iterable[torch.Tensor]) -> float:
    return float(sum(tensor.untyped_storage().nbytes() for tensor in tensors))


@dataclass(frozen=True)
class _Cache:
    tokenizer: TokenizerConfig
    num_classes: int
    num_images: int | None
    remark: str


def _cache(data: Mapping[str, Any]) -> _Cache:
    """Read what the token cache says; without one, what the tokenizer's recipe says."""
    given = Path(str(data.get("tokens") or "tokenizer"))
    for folder in (given, given / "tokens", Path("runs") / given / "tokens"):
        if (folder / "manifest.json").is_file():
            # Read as plain JSON: the reader in varlit.data would bring Lightning in, 3 s.
            manifest = json.loads((folder / "manifest.json").read_text())
            shape = TokenizerConfig.of(read_model_config(folder / "tokenizer")["tokenizer"])
            num_images = int(manifest["splits"]["train"]["count"])
            return _Cache(shape, int(manifest["num_classes"]), num_images, str(folder))
    recipe = conf_folder() / "tokenizer" / f"{given.name.removeprefix('tokenizer-')}.yaml"
    if not recipe.is_file():
        remark = f"none at `{given}` yet; the paper's tokenizer is assumed"
        return _Cache(TokenizerConfig(), IMAGENET_CLASSES, None, remark)
    content = read_yaml(recipe)
    source = str(_data(content).get("class_path")).rsplit(".", 1)[-1]
    return _Cache(
        TokenizerConfig.of((content.get("model") or {}).get("tokenizer") or {}),
        10 if source == "DigitsDataModule" else IMAGENET_CLASSES,
        NUM_IMAGES.get(source),
        f"none at `{given}` yet; conf/tokenizer/{recipe.name} is assumed",
    )


def _data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten `data`: a class's name and arguments, or the arguments alone."""
    data = settings.get("data") or {}
    if isinstance(data, str):
        return {"class_path": data}
    return {**data, **(data.get("init_args") or {})}


def _block_bytes(network: VAR) -> float:
    """What autograd keeps of one block, for one image."""
    length, width = network.scales.num_tokens, network.config.resolved_width
    block, x = network.blocks[0], torch.empty(1, length, width, requires_grad=True)
    condition = torch.empty(1, 6, width) if network.config.shared_adaln else torch.empty(1, width)
    mask = torch.empty(length, length, dtype=torch.bool)
    assert isinstance(block, Block)
    return traced(lambda: block(x, block.modulation(condition), mask), block).saved_bytes


def _discriminator(model: Mapping[str, Any]) -> int:
    if (model.get("loss") or {}).get("disc_weight", 0.4) == 0:
        return 0
    from varlit.models.discriminator import DiscriminatorConfig, build_discriminator

    with shapes_only():
        return count(build_discriminator(DiscriminatorConfig.of(model.get("discriminator") or {})))


def _ema(model: Mapping[str, Any]) -> bool:
    from varlit.training.optim import OptimConfig, TokenizerOptimConfig

    default = OptimConfig() if "var" in model else TokenizerOptimConfig()
    return bool((model.get("optim") or {}).get("ema_decay", default.ema_decay))


def _memory(parameters: int, averaged: bool, saved: float, settings: Mapping[str, Any]) -> str:
    states = parameters * (BYTES_PER_TRAINED_PARAMETER + BYTES_OF_AN_AVERAGE * averaged)
    half = "16" in str((settings.get("trainer") or {}).get("precision", ""))
    words = "weights, gradients, AdamW" + (", average" if averaged else "")
    return (
        f"about {_bytes(states)} for {words}, and {_bytes(saved / (2 if half else 1))} for each "
        "image on a device"
    )


def _length(
    settings: Mapping[str, Any], data: Mapping[str, Any], num_images: int | None
) -> dict[str, str]:
    """Rows on batch, learning rate and steps."""
    trainer = settings.get("trainer") or {}
    optim = (settings.get("model") or {}).get("optim") or {}
    batch, lr = int(data.get("batch_size") or 64), float(optim.get("lr", 1e-4))
    rows = {"batch": f"{batch:,} images; peak lr {lr * batch / 256:.3g} = {lr:.3g} x {batch} / 256"}
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps") or -1
    if steps > 0:
        rows["steps"] = f"{steps:,}"
    elif num_images and epochs:
        per_epoch = max(1, num_images // batch)
        rows["steps"] = (
            f"{per_epoch:,} an epoch ({num_images:,} images) x {epochs} epochs = "
            f"{per_epoch * epochs:,}"
        )
    else:
        rows["steps"] = f"images // {batch:,} an epoch, {epochs} epochs; the data are not there yet"
    return rows


def _tokens(config: TokenizerConfig) -> str:
    num_tokens = sum(side * side for side in config.scales)
    return (
        f"{num_tokens} an image of {config.image_size} px, {len(config.scales)} scales "
        f"{' '.join(map(str, config.scales))}"
    )


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def _flops(number: float) -> str:
    for unit, size in (("TFLOPs", 1e12), ("GFLOPs", 1e9)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e6:.3g} MFLOPs"


def _bytes(number: float) -> str:
    return f"{number / GIB:.2g} GiB" if number >= GIB / 10 else f"{number / 2**20:.2g} MiB"
