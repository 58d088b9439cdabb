"""`varlit doctor --data`: every image of a data set decoded, and what a run would meet in it."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from varlit.cli.doctor.findings import Finding
from varlit.cli.doctor.main import NUM_PROBED_IMAGES
from varlit.data.bad_files import MAX_SHARE, BadFile, bearable
from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.splits import is_remote, open_splits
from varlit.data.inspection import Inspection, count_duplicates, inspect_images
from varlit.data.progress import Progress
from varlit.data.whole_files import write_bytes
from varlit.errors import UserError

NUM_NAMED = 3
FEW_IMAGES = 10
TRAITS = {
    "cmyk": "CMYK: converted to RGB",
    "deep": "of 16 bits a channel: scaled to 8",
    "gray": "gray: shown in three equal channels",
    "alpha": "with transparency: laid on white",
    "turned": "rotated by EXIF: turned upright",
    "animated": "of several frames: the first is taken",
}


def check(args: argparse.Namespace) -> Iterator[Finding]:
    """Look at a data set of any format.

    Args:
        args: The flags of `varlit doctor`.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after what was found until then.
    """
    splits = yield from open_sets(args.data)
    if not splits:
        return
    found = [Inspection(images) for images in splits.values()]
    is_stopped = False
    try:
        _inspect(found, args)
    except KeyboardInterrupt:
        is_stopped = True
    except UserError as error:
        yield "fix", "data", str(error)
    yield from report(found, args.image_size, args.list)
    if args.duplicates:
        yield from report_duplicates(found)
    if is_stopped:
        raise KeyboardInterrupt


def open_sets(root: str, val_root: str = "") -> Generator[Finding, None, dict[str, EncodedImages]]:
    """Open a data set of any format and say what is in it; no image is decoded.

    Args:
        root: What data.root takes.
        val_root: What data.val_root takes.

    Returns:
        Its splits; none where it cannot be opened or is streamed.
    """
    if is_remote(root) or is_remote(val_root):
        yield "warn", "data", "streamed sets are not checked: check the shards where they lie"
        return {}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            splits = open_splits(root, val_root)
    except (UserError, OSError, ValueError) as error:
        yield "fix", "data", str(error)
        return {}
    for warning in caught:
        yield "warn", "data", str(warning.message)
    yield from describe_sets(splits)
    return splits


def describe_sets(splits: dict[str, EncodedImages]) -> Iterator[Finding]:
    """Say how many images and classes there are, and which classes have few."""
    train = splits["train"]
    held_out = f", {len(splits['val']):,} more to validate on" if "val" in splits else ""
    classes = f"{len(train.class_names):,} classes"
    yield "ok", "data", f"{len(train):,} images in {classes} in {train.place}{held_out}"
    if not held_out:
        yield "warn", "data", "no validation set: a part of the training images is held out"
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    least = max(FEW_IMAGES, float(np.median(counts)) / 10)
    few = [label for label in np.argsort(counts, kind="stable") if counts[label] < least]
    if few:
        names = _few(f"{train.class_names[label]} ({counts[label]:,})" for label in few)
        verb = "class has" if len(few) == 1 else "classes have"
        yield "warn", "classes", f"{len(few):,} {verb} less than {least:g} images: {names}"


def report(found: list[Inspection], image_size: int, list_file: Path | None) -> Iterator[Finding]:
    """Say what the images are like, and whether a run would bear the bad ones."""
    num_images = sum(len(part.images) for part in found)
    num_seen = sum(part.num_seen for part in found)
    if num_seen < num_images:
        yield "warn", "data", f"looked at {num_seen:,} of {num_images:,} images only"
    sides = np.concatenate([part.shorter_px[part.shorter_px > 0] for part in found])
    if len(sides):
        text = (
            f"shorter sides {sides.min():,} to {sides.max():,} px, median {np.median(sides):,.0f}"
        )
        yield "ok", "sizes", text
    for trait, text in TRAITS.items():
        count = sum(len(part.trait_rows.get(trait, ())) for part in found)
        if count:
            first = next(part for part in found if trait in part.trait_rows)
            name = first.images.where(min(first.trait_rows[trait]))
            yield "ok", trait, f"{_images(count)} {text}; such as {name}"
    broken = [bad for part in found for bad in part.bad_files(0)]
    bad = [bad for part in found for bad in part.bad_files(image_size)]
    if broken:
        yield "warn", "unreadable", f"{_images(len(broken))}: {_named(broken)}"
    known = set(broken)
    small = [each for each in bad if each not in known]
    if small:
        remedy = "skipped, or enlarged with data.small_images upscale"
        yield "warn", "small", f"{_images(len(small))} ({remedy}): {_named(small)}"
    yield _verdict(len(bad), num_seen, num_images)
    if list_file:
        lines = "".join(each.line for each in bad)
        write_bytes(list_file, lines.encode("utf-8", "surrogateescape"))
        yield "ok", "list", f"{len(bad):,} names in {list_file}"


def report_duplicates(found: list[Inspection]) -> Iterator[Finding]:
    """Say how many images are in the set more than once."""
    inside = [count_duplicates(part.contents) for part in found]
    across = count_duplicates(np.concatenate([part.contents for part in found])) - sum(inside)
    if not sum(inside) + across:
        yield "ok", "duplicates", "none"
    if sum(inside):
        yield "warn", "duplicates", f"{_images(sum(inside))} equal to another of their set"
    if across:
        yield "warn", "duplicates", f"{_images(across)} in both the training and the validation set"


def _inspect(found: list[Inspection], args: argparse.Namespace) -> None:
    """Look at all images, or at some of each split."""
    num_workers = args.num_workers if args.num_workers >= 0 else os.cpu_count() or 1
    rows = [np.arange(len(part.images)) for part in found]
    if args.quick:
        rows = [some[:: max(1, -(-len(some) // NUM_PROBED_IMAGES))] for some in rows]
    progress = Progress(f"checking {args.data}", sum(map(len, rows)), quiet_s=3.0)
    try:
        for part, some in zip(found, rows, strict=True):
            for look in inspect_images(part.images, some, num_workers, args.duplicates):
                part.add(look)
                progress.add()
    finally:
        progress.end()


def _verdict(num_bad: int, num_seen: int, num_images: int) -> Finding:
    if not num_bad:
        return "ok", "images", f"all {num_seen:,} that were looked at can be used"
    limit = bearable(num_images, MAX_SHARE)
    share = f"{num_bad:,} of {num_seen:,} ({num_bad / num_seen:.2%}) cannot be used"
    bears = f"{limit:,} (data.max_bad_share {MAX_SHARE:g})"
    if num_bad > limit:
        return "fix", "images", f"{share}, and a run bears {bears}: mend or remove them"
    return "warn", "images", f"{share}: a run skips them, and bears {bears}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _named(bad: list[BadFile]) -> str:
    return _few(f"{each.name} ({each.reason})" for each in bad)


def _few(names: Iterator[str]) -> str:
    """Join the first names of a list."""
    shown = [name for name, _ in zip(names, range(NUM_NAMED + 1), strict=False)]
    return ", ".join(shown[:NUM_NAMED]) + (", ..." if len(shown) > NUM_NAMED else "")
