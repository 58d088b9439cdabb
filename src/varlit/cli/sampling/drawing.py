"""`varlit sample`: from labels and seeds to images, batch by batch."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from varlit.cli.arguments import Count, takes_bf16
from varlit.cli.sampling.start import Start
from varlit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from varlit.generation.rejection.choice import Rejection
    from varlit.generation.sampler import Drawn, Sampler, SamplingSettings

    Draw = Callable[[Tensor, list[int]], Drawn]


def draw_in_batches(
    sampler: "Sampler",
    labels: "Tensor",
    seeds: Sequence[int],
    settings: "SamplingSettings",
    args: Namespace,
    rejection: "Rejection | None" = None,
    start: Start | None = None,
) -> "Drawn":
    """Draw an image for each of `labels` (N,) and `seeds`, or choose it among several.

    Raises:
        UserError: If a batch does not fit into the memory of the GPU; it names one that does.
    """
    import torch

    from varlit.generation.memory import fitting_batch, told_batch
    from varlit.generation.sampler import ImageSeeds

    device, size = sampler.var.device.type, args.batch_size

    def draw(batch: "Tensor", batch_seeds: list[int]) -> "Drawn":
        return sampler.draw(
            batch,
            settings,
            ImageSeeds(batch_seeds),
            with_frames=args.growing or args.gif,
            known=None if start is None else start.known(sampler, len(batch)),
        )

    def attempt(num_images: int) -> None:
        places = torch.arange(num_images) % len(labels)
        draw(labels[places], [seeds[i] for i in places.tolist()])

    with torch.autocast(device, torch.bfloat16, enabled=takes_bf16(args.precision, device)):
        try:
            return draw_all(draw, labels, seeds, size, rejection)
        except torch.OutOfMemoryError:
            # What was drawn until here is freed when this block is left.
            too_large = size if rejection is not None else min(size, len(labels))
        torch.cuda.empty_cache()
        fitting = fitting_batch(attempt, too_large)
    raise UserError(told_batch("--batch_size", size, fitting))


def draw_all(
    draw: "Draw",
    labels: "Tensor",
    seeds: Sequence[int],
    batch_size: int,
    rejection: "Rejection | None",
) -> "Drawn":
    """All images, in the order of the labels, and a line of how far it has come."""
    from varlit.generation.rejection.choice import keep_all
    from varlit.generation.sampler import Drawn

    wanted = labels.tolist()
    count = Count("drawn", rejection.num_candidates(wanted) if rejection else len(wanted))

    def counted(batch: "Tensor", batch_seeds: list[int]) -> "Drawn":
        made = draw(batch, batch_seeds)
        count.reach(count.done + len(batch))
        return made

    if rejection is not None:
        return on_cpu(keep_all(rejection.keep(counted, wanted, seeds, batch_size)).drawn)
    parts = []
    for first in range(0, len(labels), batch_size):
        part = slice(first, first + batch_size)
        parts.append(on_cpu(counted(labels[part], list(seeds[part]))))
    return Drawn.joined(parts)


def on_cpu(drawn: "Drawn") -> "Drawn":
    """The same, away from the GPU, whose memory the next batch needs."""
    from varlit.generation.sampler import Drawn

    return Drawn(drawn.images.cpu(), drawn.tokens.cpu(), [frame.cpu() for frame in drawn.frames])
