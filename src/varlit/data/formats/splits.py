"""From what a user writes as `data.root` to the images of the splits, whatever the format."""

from __future__ import annotations

import warnings
from pathlib import Path

from varlit.data.formats.encoded import EncodedImages, hold_out_rows
from varlit.errors import UserError

REMOTE_SCHEMES = ("http://", "https://", "s3://", "gs://", "pipe:")


def is_remote(root: str) -> bool:
    """Whether `root` means shards that are streamed, which have no rows; see `formats.remote`."""
    return root.startswith(REMOTE_SCHEMES)


def open_splits(root: str, val_root: str = "", val_fraction: float = 0) -> dict[str, EncodedImages]:
    """Open the training images and, where there are any, those to validate on.

    Args:
        root: A folder or a name that a format knows (docs/your-data.md lists them).
        val_root: The same for validation, where it is not found beside the training images.
        val_fraction: Part held out by name where there is no validation set; 0 for none.

    Returns:
        "train" and, if any, "val".

    Raises:
        UserError: If there is nothing that can be read.
    """
    found = _open(root, val_root)
    if "val" in found or val_fraction == 0:
        return found
    train = found["train"]
    if len(train) < 2:
        raise UserError(
            f"'{train.place}' has one image, which leaves none to validate on: add images, "
            "or set val_fraction to 0."
        )
    rows, held_out = hold_out_rows(train.names, val_fraction)
    return {"train": train.take(rows), "val": train.take(held_out)}


def _open(root: str, val_root: str) -> dict[str, EncodedImages]:
    """Hand over to the first format that knows the root; class folders refuse every other one.

    Class folders come before tars that no list names: they may be the archives that the folders
    were unpacked from, as torchvision leaves those of ImageNet beside train/ and val/.
    """
    # Each format is imported when it is met: some bring a library that others need not have.
    scheme, _, name = root.partition(":")
    if scheme == "torchvision":
        from varlit.data.formats.downloads import open_torchvision

        return open_torchvision(name)
    if scheme == "hf":
        from varlit.data.formats.parquet import open_hub

        return open_hub(name)

    from varlit.data.formats.chunks import is_chunks, open_chunks
    from varlit.data.formats.folders import has_class_folders, open_folders
    from varlit.data.formats.parquet import is_parquet, open_parquet
    from varlit.data.formats.tars import is_listed_tars, is_tars, open_tars

    place = root if scheme == "litdata" else str(Path(root).expanduser())
    formats = (
        ("litdata chunks", is_chunks, open_chunks),
        ("tar shards", is_listed_tars, open_tars),
        ("parquet files", is_parquet, open_parquet),
        ("class folders", has_class_folders, open_folders),
        ("tar files", is_tars, open_tars),
    )
    found = [(name, opens) for name, knows, opens in formats if knows(place)]
    opener = found[0][1] if found else open_folders
    others = [name for name, opens in found if opens is not opener]
    if others:
        warnings.warn(
            f"'{root}' holds {found[0][0]} and {' and '.join(others)}: reading the {found[0][0]}. "
            "Keep one kind in a folder.",
            stacklevel=3,
        )
    return opener(place, val_root)
