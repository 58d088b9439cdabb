"""The cost card of a stage: exact parameters, operations, an estimate of memory, the steps.

Parameters and operations are exact; memory is an estimate that a test compares with a measured
peak; hours assume a share of the card's data sheet, which is said beside them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varlit.cli.config.recipes import conf_folder, read_yaml
from varlit.cli.pricing.tokenizer_memory import has_average, tokenizer_memory
from varlit.cli.pricing.tracing import count
from varlit.cli.pricing.var_memory import var_memory
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import read_model_config
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.ops.costs import (
    ASSUMED_SHARE,
    BF16_PEAK_TFLOPS,
    TransformerShape,
    cache_bytes,
    key_value_bytes,
    transformer_costs,
)
from varlit.ops.steps import Steps

GIB = 2**30
NUM_IMAGES = {"DigitsDataModule": 1_500, "ImageNetDataModule": 1_281_167}
IMAGENET_CLASSES = 1000
NUM_DEVICES, CARD_GIB = 8, 80
CARDS = ("A100", "H100")
LEAST_THAT_IS_PLENTY = 1000
LEAST_HOURS = 0.1


def tokenizer_card(settings: Mapping[str, Any]) -> str:
    """Describe what a run of stage 1 costs.

    Args:
        settings: Resolved settings with `model`, `data` and `trainer`.
    """
    model, data = settings.get("model") or {}, flat_data(settings)
    memory = tokenizer_memory(settings)
    network, encoder, decoder = memory.network, memory.encoder, memory.decoder
    config, discriminator = network.config, memory.num_discriminator
    trained = f"{_millions(count(network))} ({_millions(count(network.encoder))} encoder, "
    trained += f"{_millions(count(network.decoder))} decoder, codebook {config.codebook_size} x "
    trained += f"{config.codebook_dim})"
    if discriminator:
        trained += f" + {_millions(discriminator)} discriminator"
    loss = model.get("loss") or {}
    beyond = " + LPIPS" if loss.get("perceptual_weight", 1.0) else ""
    beyond += " + discriminator" if discriminator else ""
    rows = {
        "parameters": trained,
        "tokens": _tokens(config),
        "compute": f"{_flops(encoder.flops)} to encode, {_flops(decoder.flops)} to decode an image;"
        f" {_flops(3 * (encoder.flops + decoder.flops))}{beyond} to train on it",
        "memory": _memory(memory.states, memory.per_image, memory.words),
        **_length(settings, data, NUM_IMAGES.get(str(data.get("class_path")).rsplit(".", 1)[-1])),
    }
    return card("tokenizer", rows)


def var_card(settings: Mapping[str, Any]) -> str:
    """Describe what a run of stage 2 costs.

    Args:
        settings: Resolved settings with `model`, `data` and `trainer`.
    """
    model, data = settings.get("model") or {}, flat_data(settings)
    config = VARConfig.of(model.get("var") or {})
    cache = expected_cache(data)
    tokenizer, num_classes, num_images = cache.tokenizer, cache.num_classes, cache.num_images
    with shapes_only():
        network = VAR(config, tokenizer, num_classes)
    parameters = count(network)
    memory = var_memory(network, settings, has_average(model))
    width, steps = config.resolved_width, network.steps
    shape = TransformerShape(
        config.depth, width, round(config.mlp_ratio * width), tokenizer.codebook_size, steps
    )
    costs = transformer_costs(shape)
    training = memory.training_passes * costs.forward
    trained = f", {_millions(round(memory.trained_share * parameters))} of them trained"
    rows = {
        "parameters": f"{_millions(parameters)} (depth {config.depth} -> width {width}, "
        f"{config.resolved_heads} heads, drop path {config.resolved_drop_path:.3g})"
        f"{trained if memory.trained_share < 1 else ''}",
        "tokens": f"{_tokens(tokenizer)}, drawn in {steps.num_steps} steps",
        "cache": cache.remark + _cache_size(steps, num_images),
        "compute": f"{_flops(costs.forward)} forward, {_flops(training)} to train on an "
        f"image; {_flops(costs.sampling())} to draw one with guidance, decoder aside",
        "sampling": f"{_bytes(2 * key_value_bytes(shape))} of keys and values in bf16 for an image "
        "with guidance",
        "memory": _memory(memory.states, memory.per_image, memory.words),
        **_length(settings, data, num_images),
    }
    hours = _hours(settings, data, num_images, training)
    return card("var", rows | ({"time": hours} if hours else {}))


def card(title: str, rows: Mapping[str, str]) -> str:
    """Lay out rows under a title."""
    return "\n".join([f"  [{title}]", *(f"  {name:<12} {text}" for name, text in rows.items())])


@dataclass(frozen=True)
class ExpectedCache:
    """What stage 2 will read: of the cache that is there, else of what the recipes say."""

    tokenizer: TokenizerConfig
    num_classes: int
    num_images: int | None
    remark: str


def expected_cache(data: Mapping[str, Any]) -> ExpectedCache:
    """Read what the token cache says; without one, what the tokenizer's recipe says."""
    given = Path(str(data.get("tokens") or "tokenizer"))
    for folder in (given, given / "tokens", Path("runs") / given / "tokens"):
        if (folder / "manifest.json").is_file():
            # Read as plain JSON: the reader in varlit.data would bring Lightning in, 3 s.
            manifest = json.loads((folder / "manifest.json").read_text())
            shape = TokenizerConfig.of(read_model_config(folder / "tokenizer")["tokenizer"])
            num_images = int(manifest["splits"]["train"]["count"])
            return ExpectedCache(shape, int(manifest["num_classes"]), num_images, str(folder))
    recipe = conf_folder() / "tokenizer" / f"{given.name.removeprefix('tokenizer-')}.yaml"
    if not recipe.is_file():
        remark = f"none at `{given}` yet; the paper's tokenizer is assumed"
        return ExpectedCache(TokenizerConfig(), IMAGENET_CLASSES, None, remark)
    content = read_yaml(recipe)
    source = str(flat_data(content).get("class_path")).rsplit(".", 1)[-1]
    return ExpectedCache(
        TokenizerConfig.of((content.get("model") or {}).get("tokenizer") or {}),
        10 if source == "DigitsDataModule" else IMAGENET_CLASSES,
        NUM_IMAGES.get(source),
        f"none at `{given}` yet; conf/tokenizer/{recipe.name} is assumed",
    )


def flat_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten `data`: a class's name and arguments, or the arguments alone."""
    data = settings.get("data") or {}
    if isinstance(data, str):
        return {"class_path": data}
    return {**data, **(data.get("init_args") or {})}


def _cache_size(steps: Steps, num_images: int | None) -> str:
    return f"; {_bytes(cache_bytes(steps, num_images))} a crop" if num_images else ""


def _hours(
    settings: Mapping[str, Any], data: Mapping[str, Any], num_images: int | None, flops: float
) -> str:
    """How long the recipe takes on eight cards at the assumed share of what they can do."""
    steps = num_steps(settings, data, num_images)
    if not steps:
        return ""
    work = steps * global_batch(data) * flops
    rates = {name: NUM_DEVICES * BF16_PEAK_TFLOPS[name] * 1e12 * ASSUMED_SHARE for name in CARDS}
    hours = {name: work / rate / 3600 for name, rate in rates.items()}
    if max(hours.values()) < LEAST_HOURS:
        return ""
    # Three digits, and no 4.27e+03.
    rounded = {name: f"{n:.3g}" if n < 1000 else f"{n:,.0f}" for name, n in hours.items()}
    told = [f"{text} h on {NUM_DEVICES} {name}" for name, text in rounded.items()]
    return f"{', '.join(told)}, at {ASSUMED_SHARE:.0%} of their bf16 data sheet (assumed)"


def _memory(states: float, per_image: float, words: str) -> str:
    fitting = int(max(0, CARD_GIB * GIB - states) / per_image)
    share = f": {fitting} images fit {CARD_GIB} GiB" if fitting < LEAST_THAT_IS_PLENTY else ""
    return (
        f"about {_bytes(states)} for {words}, and {_bytes(per_image)} for each image on a device"
        f"{share}"
    )


def _length(
    settings: Mapping[str, Any], data: Mapping[str, Any], num_images: int | None
) -> dict[str, str]:
    """Rows on batch, learning rate and steps."""
    trainer = settings.get("trainer") or {}
    optim = (settings.get("model") or {}).get("optim") or {}
    batch, lr = global_batch(data), float(optim.get("lr", 1e-4))
    rows = {"batch": f"{batch:,} images; peak lr {lr * batch / 256:.3g} = {lr:.3g} x {batch} / 256"}
    epochs, steps = trainer.get("max_epochs"), num_steps(settings, data, num_images)
    if steps and (trainer.get("max_steps") or -1) > 0:
        rows["steps"] = f"{steps:,}"
    elif steps and num_images:
        per_epoch = max(1, num_images // batch)
        rows["steps"] = (
            f"{per_epoch:,} an epoch ({num_images:,} images) x {epochs} epochs = {steps:,}"
        )
    else:
        rows["steps"] = f"images // {batch:,} an epoch, {epochs} epochs; a start counts the images"
    return rows


def global_batch(data: Mapping[str, Any]) -> int:
    """Images of one optimizer step, over all devices."""
    return int(data.get("batch_size") or 64)


def num_steps(
    settings: Mapping[str, Any], data: Mapping[str, Any], num_images: int | None
) -> int | None:
    """Optimizer steps of the training; None where it is not known yet."""
    trainer = settings.get("trainer") or {}
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps") or -1
    if steps > 0:
        return int(steps)
    return max(1, num_images // global_batch(data)) * int(epochs) if num_images and epochs else None


def _tokens(config: TokenizerConfig) -> str:
    num_tokens = sum(side * side for side in config.scales)
    return (
        f"{num_tokens} an image of {config.image_size} px, {len(config.scales)} "
        f"scale{'s' if len(config.scales) > 1 else ''} "
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
