"""From what a caller asks for to what the sampler takes: labels, seeds, batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.arguments import (
    Labels,
    Seeds,
    as_classes,
    as_seeds,
    check_batch_size,
    check_fits,
    check_generator,
)
from varlit.generation.editing.known import KnownTokens
from varlit.generation.memory import within_memory
from varlit.generation.recorded.kept import KeptSampler, suited
from varlit.generation.rejection.choice import (
    Classify,
    Rejection,
    keep_all,
    num_outputs,
)
from varlit.generation.rejection.counterparts import counterparts, unmatched
from varlit.generation.rejection.rule import RejectionSettings
from varlit.generation.sampler import Drawn, ImageSeeds, Sampler, SamplingSettings
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

__all__ = [
    "Choice",
    "Labels",
    "Request",
    "Seeds",
    "as_classes",
    "as_seeds",
    "check_fits",
    "check_generator",
    "draw_batches",
    "draw_chosen",
    "draw_request",
]


@dataclass(frozen=True)
class Request:
    """What `sample` and `edit` of a public model share of their arguments."""

    tokenizer: VQVAE
    seed: Seeds
    generator: torch.Generator | None
    batch_size: int
    dtype: torch.dtype | None = None
    """Of matrix products; None = that of the autocast around the drawing, or fp32."""
    kept: KeptSampler = field(default_factory=KeptSampler, compare=False)
    """Where the sampler stays from call to call."""


@dataclass(frozen=True)
class Choice:
    """What `sample` was told of rejection sampling."""

    keep: float
    classifier: Classify | None
    classes: Sequence[int | None] | None


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
    check_batch_size(batch_size)
    check_is_evaluating(sampler.var)
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        yield sampler.draw(
            labels[part],
            settings,
            ImageSeeds(random[part]) if isinstance(random, Sequence) else random,
            with_frames=with_frames,
            known=None if known is None else known.rows(part),
        )


def check_is_evaluating(var: VAR) -> None:
    """Refuse a VAR that drops parts of itself.

    Raises:
        UserError: If it is in train mode.
    """
    if var.training:
        raise UserError(
            "this VAR is in train mode, where it drops parts of itself at random; call .eval()"
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
        UserError: As `as_seeds`, `check_generator` and `draw_batches`; or if a batch does not fit
            into the memory of the GPU, naming one that does.
    """
    check_generator(request.generator, var.device)
    check_batch_size(request.batch_size)
    check_is_evaluating(var)
    random: Sequence[int] | torch.Generator | None = request.generator
    batch_size = request.batch_size
    if request.seed is not None:
        # Beside known tokens a seed may serve several images; who knows these has looked.
        alone = labels if known is None else None
        random = as_seeds(request.seed, request.generator, len(labels), alone)
    elif request.generator is not None:
        batch_size = len(labels)  # the official order of random numbers goes over all images

    def draw(count: int) -> Drawn:
        whole = request.kept.open(var, request.tokenizer, request.dtype, len(labels))
        sampler = suited(whole, settings, isinstance(random, Sequence), known)
        given = None if known is None else known.rows(slice(count))
        some = random[:count] if isinstance(random, Sequence) else random
        parts = draw_batches(sampler, labels[:count], settings, some, batch_size, given)
        return Drawn.joined(list(parts))

    if request.generator is None:
        return within_memory(draw, len(labels), batch_size)
    try:
        return draw(len(labels))
    except torch.OutOfMemoryError:
        pass
    raise UserError(
        f"out of GPU memory: from a generator all {len(labels)} images are drawn as one batch; "
        "give a seed instead, which draws batch_size at a time, or fewer labels"
    )


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
    check_batch_size(request.batch_size)
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
    seeds = as_seeds(first, None, len(labels), labels)
    assert seeds is not None

    def draw(part: Tensor, part_seeds: list[int]) -> Drawn:
        batch = replace(request, seed=part_seeds, batch_size=len(part))
        return draw_request(var, batch, part, settings)

    rejection = Rejection(choice.classifier, targets, rule)
    return keep_all(rejection.keep(draw, labels.tolist(), seeds, request.batch_size)).drawn
