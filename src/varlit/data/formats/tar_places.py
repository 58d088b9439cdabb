"""Which tar shards a user's words mean: a folder, a brace pattern or one file."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from varlit.data.formats.shards_file import SHARDS_FILE, ShardList, expand_braces, read_shard_list
from varlit.errors import UserError

LAYOUT = "expected shards such as train-000000.tar with <key>.jpg and <key>.cls in them"

_SPLIT_WORD = re.compile(r"(?:^|[^a-z])(train|validation|valid|val|test)(?![a-z])")


@dataclass(frozen=True)
class ShardFiles:
    """The shards that a user's words mean, before any is opened.

    Attributes:
        place: The words.
        folder: The folder that all of them lie below.
        splits: Files by split, in order.
        listed: What shards.json says, where there is one.
    """

    place: str
    folder: Path
    splits: dict[str, list[Path]]
    listed: ShardList | None = None


def find_shards(root: str, believe_list: bool = True) -> ShardFiles:
    """Find the shards that `root` means.

    Args:
        root: A folder, a pattern or one tar.
        believe_list: Take the shards that shards.json names, where there is one; else those there.

    Raises:
        UserError: If there are none.
    """
    if "{" in root and not Path(root).expanduser().exists():
        return _of_pattern(root)
    folder = Path(root).expanduser()
    if folder.is_file():
        return ShardFiles(root, folder.parent, {"train": [folder]})
    if not folder.is_dir():
        raise UserError(f"'{root}' does not exist: {LAYOUT}.")
    if believe_list and (folder / SHARDS_FILE).is_file():
        listed = read_shard_list(folder / SHARDS_FILE)
        files = {
            split: [folder / shard.file for shard in shards]
            for split, shards in listed.splits.items()
        }
        return ShardFiles(root, folder, files, listed)
    tars = tars_in(folder)
    splits = _by_name(tars)
    if "train" not in splits:
        what = "validation or test shards alone" if tars else "no .tar file"
        raise UserError(f"'{root}' has {what}: {LAYOUT}.")
    return ShardFiles(root, folder, splits)


def _of_pattern(root: str) -> ShardFiles:
    paths = [Path(name).expanduser() for name in dict.fromkeys(expand_braces(root))]
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        raise UserError(f"none of the {len(paths):,} files of '{root}' exists: {LAYOUT}.")
    if missing:
        warnings.warn(
            f"'{root}' names {len(missing):,} shard(s) that do not exist, such as '{missing[0]}'.",
            stacklevel=3,
        )
    paths = [path.absolute() for path in paths if path.is_file()]
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    listed = None
    if (folder / SHARDS_FILE).is_file():
        # A part of a larger set: its classes are known, its counts are not those of the file.
        whole = read_shard_list(folder / SHARDS_FILE)
        listed = ShardList(whole.class_names, {})
    return ShardFiles(root, folder, {"train": paths}, listed)


def tars_in(folder: Path) -> list[Path]:
    """Return the tars in a folder, by name.

    Raises:
        UserError: If it cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"cannot list '{folder}': {error.strerror}.") from error
    return [folder / n for n in names if n.endswith(".tar") and not n.startswith(".")]


def _by_name(paths: Sequence[Path]) -> dict[str, list[Path]]:
    words: dict[str, list[Path]] = {}
    for path in paths:
        match = _SPLIT_WORD.search(path.name.lower())
        words.setdefault(match[1] if match else "", []).append(path)
    val = words.get("val") or words.get("validation") or words.get("valid")
    splits = {"train": words.get("train") or words.get("") or [], "val": val or []}
    return {split: files for split, files in splits.items() if files}
