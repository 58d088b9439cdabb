"""`varlit sample`: the pictures of what was drawn: a grid, a strip over the scales, a GIF."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.sampling.start import Start

if TYPE_CHECKING:
    from varlit.generation.sampler import Drawn

MAX_OF_ONE_CLASS = 8


def write_pictures(
    drawn: "Drawn",
    names: Sequence[str],
    frame_names: Sequence[str],
    args: Namespace,
    start: Start | None = None,
) -> None:
    """Write what the flags ask for, and say where.

    Args:
        drawn: `args.per_class` images of each class, class by class.
        names: Of the classes.
        frame_names: Of the scales after which pictures were decoded.
        args: Of `varlit sample`.
        start: What the images began with.
    """
    write_grid(drawn, names, args, start)
    if args.growing:
        write_strip(drawn, names, frame_names, args, start)
    if args.gif:
        write_gif(drawn, names, frame_names, args)


def write_grid(drawn: "Drawn", names: Sequence[str], args: Namespace, start: Start | None) -> None:
    """A row a class; left of it what it started from."""
    import torch

    from varlit.viz.grids import image_grid, save_png
    from varlit.viz.pyramids import plain_name

    images, columns, column_labels = drawn.images, args.per_class, list[str]()
    if start is not None:
        given = torch.cat((start.photo, start.coarse))
        rows = [torch.cat((given, row)) for row in images.split(columns)]
        images, columns = torch.cat(rows), columns + len(given)
        column_labels = ["photo", f"up to {plain_name(start.last_kept)}"]
    picture = image_grid(images, columns, row_labels=names, column_labels=column_labels)
    save_png(picture, args.out)
    noun = "class" if len(names) == 1 else "classes"
    print(f"{len(drawn.images)} images of {len(names)} {noun}: {args.out}")


def write_strip(
    drawn: "Drawn",
    names: Sequence[str],
    frame_names: Sequence[str],
    args: Namespace,
    start: Start | None,
) -> None:
    """The first image of each class, or the images of the only class, a row each."""
    from varlit.viz.grids import save_png
    from varlit.viz.pyramids import growing_strip

    shown = slice(None, None, args.per_class)
    if len(names) == 1:
        shown = slice(MAX_OF_ONE_CLASS)
        names = [names[0], *[""] * (min(args.per_class, MAX_OF_ONE_CLASS) - 1)]
    frames = [frame[shown] for frame in drawn.frames]
    originals = None if start is None else start.photo.expand_as(frames[0])
    path = beside_out(args.out, "png")
    save_png(growing_strip(frames, frame_names, originals=originals, row_labels=names), path)
    print(f"growing over the scales: {path}")


def write_gif(
    drawn: "Drawn", names: Sequence[str], frame_names: Sequence[str], args: Namespace
) -> None:
    """The images of the grid as they grow, as many as a GIF shows."""
    from varlit.viz.growing import MAX_COLUMNS, MAX_ROWS, growing_pictures, save_gif

    pictures = growing_pictures(drawn.frames, frame_names, columns=args.per_class, row_labels=names)
    path = beside_out(args.out, "gif")
    save_gif(pictures, path)
    is_whole = len(names) <= MAX_ROWS and args.per_class <= MAX_COLUMNS
    left_out = "" if is_whole else f" (the first {MAX_ROWS} classes and {MAX_COLUMNS} images each)"
    print(f"growing, animated{left_out}: {path}")


def beside_out(out: Path, kind: str) -> Path:
    """Where a picture of growth lies: beside the samples."""
    return out.with_name(f"{out.stem}-growing.{kind}")
