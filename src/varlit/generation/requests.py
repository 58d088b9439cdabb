"""From what a caller asks for to what the sampler takes: labels, seeds, batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.counterparts import counterparts, unmatched
from varlit.generation.editing import KnownTokens
from varlit.generation.rejection import (
    Classify,
    Rejection,
    keep_all,
    num_outputs,
)
from varlit.generation.rejection_rule import RejectionSettings
from varlit.generation.sampler import Drawn, ImageSeeds, Sampler, SamplingSettings
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

Labels = Tensor | int | Sequence[int | None] | None
Seeds = int | Sequence[int] | None


@dataclass(frozen=True)
class Request:
    """What `sample` and `edit` of a public model share of their arguments."""

    tokenizer: VQVAE
    seed: Seeds
    generator: torch.Generator | None
    batch_size: int


@dataclass(frozen=True)
class Choice:
    """What `sample` was told of rejection sampling."""

    keep: float
    classifier: Classify | None
    classes: Sequence[int | None] | None


def as_classes(labels: Labels, num_classes: int) -> Tensor:
    """Labels as int64 (B,), None as the unconditional class.

    Raises:
        UserError: If there are none, or one is no whole number in 0 to num_classes.
    """
    if isinstance(labels, Tensor):
        given = labels.reshape(-1).tolist()
    else:
        one = labels is None or isinstance(labels, str) or not hasattr(labels, "__iter__")
        given = [labels] if one else list(cast(Sequence[int | None], labels))
    if not given:
        raise UserError("no labels were given; an image is drawn for each label")
    classes = [num_classes if label is None else _whole(label, "a label") for label in given]
    # Here and not in the network: on a GPU a label out of range ends the whole process.
    for label in classes:
        if not 0 <= label <= num_classes:
            raise UserError(
                f"labels must lie in 0..{num_classes - 1}, or be None or {num_classes} for "
                f"unconditional; got {label}"
            )
    return torch.tensor(classes)


def as_seeds(seed: Seeds, generator: torch.Generator | None, count: int) -> list[int] | None:
    """A seed for each image: seed, seed + 1 ... or those given; None where a stream is used.

    Raises:
        UserError: If both a seed and a generator are given, seeds of another number, or one that
            is no whole number of 64 bits.
    """
    if seed is None:
        return None
    if generator is not None:
        raise UserError("give a seed or a generator, not both; a seed is the same in any batch")
    values = seed.tolist() if isinstance(seed, Tensor) else seed
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        first = _whole(values, "a seed")
        seeds = [first + i for i in range(count)]
    else:
        seeds = [_whole(value, "a seed") for value in values]
    if len(seeds) != count:
        raise UserError(f"give one seed, or one for each of {count} images; got {len(seeds)}")
    if wrong := [value for value in seeds if not -(2**63) <= value < 2**63]:
        raise UserError(f"a seed must fit into 64 bits; got {wrong[0]}")
    return seeds


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a stream that cannot draw on this device.

    Raises:
        UserError: If it is no generator, or one of another kind of device.
    """
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator must be a torch.Generator; got {generator!r}. Or give a seed")
    if generator.device.type != device.type:
        raise UserError(
            f"the generator is on {generator.device.type} and the VAR on {device.type}; make it "
            f'with torch.Generator("{device.type}"), or give a seed, which serves any device'
        )


def _whole(value: object, what: str) -> int:
    """A whole number of Python, numpy or torch."""
    try:
        if not isinstance(value, bool):
            return index(cast(SupportsIndex, value))
    except TypeError:
        pass
    raise UserError(f"{what} must be a whole number; got {value!r}")


def check_fits(tokenizer: VQVAE, var: VAR) -> None:
    """Refuse a tokenizer that cannot decode what a transformer draws.

    Raises:
        UserError: If it is no tokenizer, speaks of other tokens, or is on another device.
    """
    if not isinstance(tokenizer, VQVAE):
        raise UserError(
            f"tokenizer must be a tokenizer, as varlit.load gives; got a {type(tokenizer).__name__}"
        )
    if tokenizer.scales != var.scales:
        raise UserError(
            f"the tokenizer has scales {list(tokenizer.scales.sides)} and this VAR "
            f"{list(var.scales.sides)}; give tokenizer.with_scales(var.scales.sides) if its "
            "weights are the same"
        )
    shape, own = tokenizer.config, var.tokenizer_config
    if (shape.codebook_size, shape.codebook_dim) != (own.codebook_size, own.codebook_dim):
        raise UserError(
            f"the tokenizer has {shape.codebook_size} codes of dimension {shape.codebook_dim}, "
            f"this VAR {own.codebook_size} of {own.codebook_dim}; give the one it was trained with"
        )
    if tokenizer.last_layer.device != var.device:
        raise UserError(
            f"the tokenizer is on {tokenizer.last_layer.device} and the VAR on {var.device}; move "
            "one with .to(...)"
        )


def draw_batches(
    sampler: Sampler,
    labels: Tensor,
    settings: SamplingSettings,
    random: Sequence[int] | torch.Generator | None,
    batch_size: int,
    known: KnownTokens | None = None,
    with_frames: bool = False,
) -> Iterator[Drawn]:
    """Draw an image for each label, some at a time.

    Args:
        sampler: Draws one batch.
        labels: Classes (N,).
        settings: Guidance and filtering.
        random: A seed for each image, which makes it the same in any batch; or one stream.
        batch_size: Images at a time.
        known: Tokens that are given, (N, L).
        with_frames: Also decode the picture after every scale.

    Raises:
        UserError: If the batch size is not positive.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")
    if sampler.var.training:
        raise UserError(
            "this VAR is in train mode, where it drops parts of itself at random; call .eval()"
        )
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        yield sampler.draw(
            labels[part],
            settings,
            ImageSeeds(random[part]) if isinstance(random, Sequence) else random,
            with_frames=with_frames,
            known=None if known is None else known.rows(part),
        )


def draw_request(
    var: VAR,
    request: Request,
    labels: Tensor,
    settings: SamplingSettings,
    known: KnownTokens | None = None,
) -> Drawn:
    """Draw all images of a request.

    Raises:
        UserError: As `as_seeds`, `check_generator` and `draw_batches`.
    """
    check_generator(request.generator, var.device)
    random: Sequence[int] | torch.Generator | None = request.generator
    batch_size = request.batch_size
    if request.seed is not None:
        random = as_seeds(request.seed, request.generator, len(labels))
    elif request.generator is not None:
        batch_size = len(labels)  # the official order of random numbers goes over all images
    sampler = Sampler(var, request.tokenizer)
    return Drawn.joined(list(draw_batches(sampler, labels, settings, random, batch_size, known)))


def draw_chosen(
    var: VAR,
    request: Request,
    labels: Tensor,
    settings: SamplingSettings,
    choice: Choice,
    class_names: Sequence[str] = (),
) -> Drawn:
    """Draw a request by rejection sampling: each class competes within this call.

    Raises:
        UserError: If there is no classifier, it does not fit the classes, or a stream is given.
    """
    if choice.classifier is None:
        raise UserError("keep below 1 needs a classifier: varlit.models.classifier.open_classifier")
    if request.generator is not None:
        raise UserError("rejection sampling needs a seed; a generator names no single image")
    if request.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {request.batch_size}")
    rule = RejectionSettings(choice.keep, group_size=len(labels))
    outputs = num_outputs(choice.classifier, var.tokenizer_config.image_size, var.device)
    names = getattr(choice.classifier, "class_names", ())
    targets = counterparts(var.num_classes, class_names, outputs, names, choice.classes)
    if alone := unmatched(targets, sorted(set(labels.tolist()))):
        warnings.warn(
            f"the classifier does not know the classes {alone}: all their images are kept",
            stacklevel=3,
        )
    # Without a seed the images are as random as torch's global stream.
    first = int(torch.randint(2**31, ())) if request.seed is None else request.seed
    seeds = as_seeds(first, None, len(labels))
    assert seeds is not None

    def draw(part: Tensor, part_seeds: list[int]) -> Drawn:
        batch = Request(request.tokenizer, part_seeds, None, len(part))
        return draw_request(var, batch, part, settings)

    rejection = Rejection(choice.classifier, targets, rule)
    return keep_all(rejection.keep(draw, labels.tolist(), seeds, request.batch_size)).drawn
