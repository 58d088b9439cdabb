"""Writing shards.json for tar shards that were made elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from varlit.data.formats.shards_file import (
    SHARDS_FILE,
    Shard,
    ShardList,
    read_shard_list,
    write_shard_list,
)
from varlit.data.formats.tar_index import TarIndex, read_indices
from varlit.data.formats.tar_places import find_shards
from varlit.data.progress import Progress
from varlit.errors import UserError

NUM_THREADS = 8


def list_shards(root: str, class_names: Sequence[str] | None = None) -> tuple[ShardList, Path]:
    """Index shards, hash them and write shards.json into the folder that holds them.

    Args:
        root: A folder of tars, a pattern, or one tar; a shards.json that is there is not believed
            except for its class names.
        class_names: Names in the order of the labels; else those of an older shards.json, else
            the labels as words.

    Returns:
        The list and its file.

    Raises:
        UserError: If there are no shards, one of them is damaged, or there are too few names.
    """
    found = find_shards(root, believe_list=False)
    paths = [path for files in found.splits.values() for path in files]
    indices = dict(zip(paths, read_indices(paths), strict=True))
    for path, index in indices.items():
        if index.damage:
            raise UserError(
                f"'{path}' is damaged ({index.damage}): fetch it again or remove it, then run the "
                "same command again."
            )
    before = found.folder / SHARDS_FILE
    if class_names is None and before.is_file():
        class_names = read_shard_list(before).class_names
    names = _class_names(found.place, indices, class_names)
    sums = _sha256_of(paths)
    splits = {
        split: tuple(
            Shard(
                path.relative_to(found.folder).as_posix(),
                len(indices[path]),
                indices[path].num_bytes,
                sums[path],
            )
            for path in files
        )
        for split, files in found.splits.items()
    }
    shards = ShardList(names, splits)
    return shards, write_shard_list(shards, found.folder)


def _class_names(
    place: str, indices: dict[Path, TarIndex], given: Sequence[str] | None
) -> tuple[str, ...]:
    labelled = {path: int(index.labels.max()) for path, index in indices.items() if len(index)}
    if not labelled:
        raise UserError(f"no image with a label in the shards of '{place}'.")
    worst = max(labelled, key=lambda path: labelled[path])
    if given is None:
        return tuple(map(str, range(labelled[worst] + 1)))
    if labelled[worst] >= len(given):
        raise UserError(
            f"'{worst}' has label {labelled[worst]}, but there are {len(given)} class names: "
            "expected one name for each label from 0 on."
        )
    return tuple(given)


def _sha256_of(paths: Sequence[Path]) -> dict[Path, str]:
    progress = Progress("hashing shards", len(paths))
    sums = {}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for path, digest in zip(paths, pool.map(_sha256, paths), strict=True):
            sums[path] = digest
            progress.add()
    progress.end()
    return sums


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
