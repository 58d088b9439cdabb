"""From what a user writes as `data.root` to the images of the splits, whatever the format."""

from __future__ import annotations

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
    """Hand over to the first format that knows the root; class folders know every other one."""
    # Each format is imported when it is met: some bring a library that others need not have.
    scheme, _, name = root.partition(":")
    if scheme == "torchvision":
        from varlit.data.formats.downloads import open_torchvision

        return open_torchvision(name)
    if scheme == "hf":
        from varlit.data.formats.parquet import open_hub

        return open_hub(name)

    from varlit.data.formats.chunks import is_chunks, open_chunks
    from varlit.data.formats.folders import open_folders
    from varlit.data.formats.parquet import is_parquet, open_parquet
    from varlit.data.formats.tars import is_tars, open_tars

    place = root if scheme == "litdata" else str(Path(root).expanduser())
    for knows, opens in (
        (is_chunks, open_chunks),
        (is_tars, open_tars),
        (is_parquet, open_parquet),
    ):
        if knows(place):
            return opens(place, val_root)
    return open_folders(place, val_root)
