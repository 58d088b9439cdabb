"""What a caller may give as labels, seeds, generator and tokenizer, checked before any drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import index
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

Labels = Tensor | int | Sequence[int | None] | None
Seeds = int | Sequence[int] | None


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
    classes = [num_classes if label is None else whole_number(label, "a label") for label in given]
    # Here and not in the network: on a GPU a label out of range ends the whole process.
    for label in classes:
        if not 0 <= label <= num_classes:
            raise UserError(
                f"labels must lie in 0..{num_classes - 1}, or be None or {num_classes} for "
                f"unconditional; got {label}"
            )
    return torch.tensor(classes)


def as_seeds(
    seed: Seeds,
    generator: torch.Generator | None,
    count: int,
    labels: Tensor | None = None,
    images: Tensor | None = None,
) -> list[int] | None:
    """A seed for each image: seed, seed + 1 ... or those given; None where a stream is used.

    Args:
        seed: One for all, or one for each.
        generator: A stream in its place.
        count: Of images.
        labels: Classes (count,), where label and seed make the image: none shall come twice.
        images: Which one each is made of (count,), where the image makes a difference too.

    Raises:
        UserError: If both a seed and a generator are given, seeds of another number, one that is
            no whole number of 64 bits, or one twice for a label.
    """
    if seed is None:
        return None
    if generator is not None:
        raise UserError("give a seed or a generator, not both; a seed is the same in any batch")
    values = seed.tolist() if isinstance(seed, Tensor) else seed
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        first = whole_number(values, "a seed")
        seeds = [first + i for i in range(count)]
    else:
        seeds = [whole_number(value, "a seed") for value in values]
    if len(seeds) != count:
        raise UserError(f"give one seed, or one for each of {count} images; got {len(seeds)}")
    if wrong := [value for value in seeds if not -(2**63) <= value < 2**63]:
        raise UserError(f"a seed must fit into 64 bits; got {wrong[0]}")
    if labels is not None:
        _check_no_image_twice(labels.tolist(), seeds, images)
    return seeds


def _check_no_image_twice(
    labels: Sequence[int], seeds: Sequence[int], images: Tensor | None
) -> None:
    sources = [0] * len(seeds) if images is None else images.tolist()
    made_of = Counter(zip(labels, seeds, sources, strict=True))
    (label, seed, source), count = made_of.most_common(1)[0]
    if count > 1:
        of = "" if images is None else f" of image {source}"
        raise UserError(
            f"seed {seed} is given {count} times for label {label}{of}, which would draw one image "
            f"{count} times; give other seeds, or one seed alone to count up from"
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of images.

    Raises:
        UserError: If it is no whole number from 1 on.
    """
    if whole_number(batch_size, "batch_size") < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")


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


def whole_number(value: object, what: str) -> int:
    """A whole number of Python, numpy or torch.

    Raises:
        UserError: If it is none; `what` says of what.
    """
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
