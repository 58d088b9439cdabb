"""Shards that are streamed: where they are, how many images each holds, who reads which.

They are named by the URL of a folder, or by a URL with a brace pattern; in both cases the folder
holds `shards.json`, without which neither classes nor sizes would be known before the end.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.shards_file import (
    SHARDS_FILE,
    Shard,
    ShardList,
    expand_braces,
    read_shard_list,
)
from varlit.data.formats.splits import is_remote, open_splits
from varlit.data.formats.tar_stream import StreamedTar, read_text
from varlit.errors import UserError

# The part of a URL or command that names shards: it has braces, or is one tar.
_NAMES = re.compile(r"[^/\s'\"]*(?:\{\S*\}[^/?\s'\"]*|\.tar)")
# A list from elsewhere must not put words into a command.
_SAFE_FILE = re.compile(r"[\w.,=+@%-][\w.,=+@%/-]*", re.ASCII)


@dataclass(frozen=True, eq=False)
class RemoteShards:
    """The images of one split, in tar shards behind a URL; rows count on through all shards.

    Attributes:
        place: Where they are, as the user wrote it.
        class_names: Names in the order of the labels.
        shards: What shards.json says of each, in the order of the rows.
        prefix: What stands before a shard's file name in its URL.
        suffix: What stands after it.
    """

    place: str
    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    prefix: str
    suffix: str

    def __len__(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def counts(self) -> np.ndarray:
        """(S,) int64, images of each shard."""
        return np.array([shard.count for shard in self.shards], dtype=np.int64)

    @cached_property
    def firsts(self) -> np.ndarray:
        """(S,) int64, the first row of each shard."""
        return np.cumsum(self.counts) - self.counts

    def shard_of(self, row: int) -> int:
        """Return the shard that holds a row."""
        return int(np.searchsorted(self.firsts, row, side="right")) - 1

    def tar(self, shard: int) -> StreamedTar:
        """Return a shard as what can be read."""
        url = self.prefix + self.shards[shard].file + self.suffix
        first, count = int(self.firsts[shard]), int(self.counts[shard])
        return StreamedTar(url, first, count, len(self.class_names))

    def digest(self) -> str:
        """Return a sha256 that changes with the shards, and not with where they are kept."""
        words = [*self.class_names, ""]
        words += [f"{shard.file} {shard.count} {shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()


def open_streamed(
    root: str, val_root: str, val_fraction: float
) -> dict[str, EncodedImages | RemoteShards]:
    """Open splits of which one at least is streamed.

    Args:
        root: URL of the training shards, or what `open_splits` knows.
        val_root: The same for validation, where it is not listed beside the training shards.
        val_fraction: Must be 0 where there is no validation set: a stream is not split up.

    Returns:
        "train" and, if any, "val".

    Raises:
        UserError: If there is no list of shards, or none to validate on.
    """
    found = _open(root)
    if val_root:
        val = _open(val_root)
        found = {"train": found["train"], "val": val.get("val", val["train"])}
    if "val" not in found:
        if val_fraction == 0:
            return found
        raise UserError(
            f"nothing to validate on: '{root}' is streamed, so no part of it is held out. Set "
            "data.val_root to a folder or URL (a folder's URL brings its own val shards), or "
            "data.val_fraction to 0."
        )
    if found["val"].class_names != found["train"].class_names:
        raise UserError(
            f"'{found['val'].place}' has other classes than '{found['train'].place}': labels would "
            "not mean the same. Make both from the same class folders."
        )
    return found


def _open(root: str) -> dict[str, EncodedImages | RemoteShards]:
    return {**open_remote(root)} if is_remote(root) else {**open_splits(root)}


def open_remote(root: str) -> dict[str, RemoteShards]:
    """Open the shards of a folder's URL (all its splits), or of a pattern ("train").

    Raises:
        UserError: If there is no shards.json beside them, or it does not list them.
    """
    names = _NAMES.search(root, root.index(":"))
    if names is None:
        if root.startswith("pipe:"):
            raise UserError(
                f"'{root}' names no shards: expected a command such as 'pipe:cat "
                "/x/train-{000000..000099}.tar'."
            )
        prefix, suffix = root.rstrip("/") + "/", ""
        listed = _shard_list(prefix + SHARDS_FILE)
        splits = listed.splits
    else:
        prefix, suffix = root[: names.start()], root[names.end() :]
        listed = _shard_list(prefix + SHARDS_FILE + suffix)
        splits = {"train": _select(expand_braces(names.group()), listed, root)}
    return {
        split: RemoteShards(root, listed.class_names, shards, prefix, suffix)
        for split, shards in splits.items()
        if split in ("train", "val")
    }


def _shard_list(url: str) -> ShardList:
    try:
        listed = read_shard_list(read_text(url), url)
    except OSError as error:
        raise UserError(
            f"cannot read '{url}' ({error}): streams need it for classes and sizes. Run `varlit "
            "data index FOLDER` where the shards lie and put shards.json beside them, or download "
            "them."
        ) from error
    for shard in (shard for shards in listed.splits.values() for shard in shards):
        if not _SAFE_FILE.fullmatch(shard.file):
            raise UserError(
                f"'{url}' lists '{shard.file}': expected file names of letters, digits and . _ - "
                "alone."
            )
    return listed


def _select(files: list[str], listed: ShardList, root: str) -> tuple[Shard, ...]:
    known = {shard.file: shard for shards in listed.splits.values() for shard in shards}
    missing = [file for file in files if file not in known]
    if missing:
        raise UserError(
            f"shards.json does not list {len(missing)} of the {len(files)} shards of '{root}', "
            f"such as '{missing[0]}': mend the pattern, or index the shards again."
        )
    return tuple(known[file] for file in files)
