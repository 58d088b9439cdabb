"""Reading a finished cache: pyramids gathered in batches, and files compared with the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varlit.arrays import plain_damage
from varlit.data.draws import PLAIN_VIEW, draw_below
from varlit.data.order import BatchIndex
from varlit.data.tokens.manifest import Manifest, ShardRecord, read_manifest, remake_command
from varlit.data.tokens.writer import check_labels
from varlit.errors import UserError

ALWAYS_HASHED_BYTES = 256 * 2**20
"""Caches up to this size are checked in full when opened; larger ones by the size of their files
and the checksum of their labels, or training would start minutes late."""


DTYPES = {"tokens": np.uint16, "labels": np.int32, "ids": np.int64}


class TokenDataset:
    """Batches of one split: tokens (B, L) int64 and label (B,) int64.

    View 0 of an image is its first crop (the only one where there is one, the centre); any other
    view picks one of the crops by (seed, row, view). Files are mapped on first use in each
    process, so that nothing but paths travels to workers.

    Args:
        manifest: The cache.
        split: Name of the split.
        seed: Seed of the choice of crops.
    """

    def __init__(self, manifest: Manifest, split: str, seed: int = 0) -> None:
        shards = [shard for shard in manifest.splits[split] if shard.count]
        self.paths = [shard.path(manifest.folder, "tokens") for shard in shards]
        self.ends = np.cumsum([shard.count for shard in shards], dtype=np.int64)
        self.labels = np.concatenate(
            [np.zeros(0, np.int32), *(load_array(manifest, s, "labels") for s in shards)]
        )
        self.num_crops, self.num_tokens = manifest.spec.num_crops[split], manifest.spec.num_tokens
        self.seed = seed
        self._maps: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Gather a batch, in one indexing call for each shard that it touches."""
        crops = self.crops(index)
        shards = np.searchsorted(self.ends, index.ids, side="right")  # B
        starts = np.concatenate([[0], self.ends])
        tokens = np.empty((len(index.ids), self.num_tokens), dtype=np.int64)  # B, L
        for shard in np.unique(shards).tolist():
            rows = shards == shard
            tokens[rows] = self._mapped()[shard][index.ids[rows] - starts[shard], crops[rows]]
        labels = self.labels[index.ids].astype(np.int64)  # B
        return {"tokens": torch.from_numpy(tokens), "label": torch.from_numpy(labels)}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": None}

    def crops(self, index: BatchIndex) -> np.ndarray:
        """Return which crop of each row a batch shows, (B,) int64."""
        if self.num_crops == 1:
            return np.zeros_like(index.ids)
        drawn = draw_below(self.num_crops, self.seed, index.ids, index.views)  # B
        return np.where(index.views == PLAIN_VIEW, 0, drawn)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return all crops of consecutive rows, (n, crops, L) uint16."""
        parts = [np.zeros((0, self.num_crops, self.num_tokens), np.uint16)]
        first = 0
        for array, end in zip(self._mapped(), self.ends.tolist(), strict=True):
            parts.append(array[max(start - first, 0) : max(stop - first, 0)])
            first = end
        return np.concatenate(parts)

    def _mapped(self) -> list[np.ndarray]:
        if self._maps is None:
            self._maps = [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths]
        return self._maps


def open_tokens(folder: Path | str, split: str, seed: int = 0) -> TokenDataset:
    """Open a split of a cache after checking its files.

    Raises:
        UserError: If the cache or the split is not there, or a file is missing, of another size
            or (see `ALWAYS_HASHED_BYTES`) of another content than when it was written, or a label
            is none of the classes.
    """
    manifest = read_manifest(folder)
    require_split(manifest, split)
    check_shards(manifest, split, in_full=manifest.num_bytes() <= ALWAYS_HASHED_BYTES)
    dataset = TokenDataset(manifest, split, seed)
    check_labels(
        dataset.labels,
        manifest.spec.class_names,
        f"the split '{split}' of the token cache '{folder}'",
        f"Mend the data, remove the cache and run `{remake_command(manifest.folder)}`.",
    )
    return dataset


def require_split(manifest: Manifest, split: str) -> None:
    """Check that a cache has a split.

    Raises:
        UserError: If it has not; those that it has are named.
    """
    if split not in manifest.splits:
        raise UserError(
            f"the token cache '{manifest.folder}' has no split '{split}': it has "
            f"{', '.join(manifest.splits)}."
        )


def check_shards(
    manifest: Manifest, split: str, in_full: bool, tell: Callable[[int], None] | None = None
) -> None:
    """Compare the files of a split with the manifest.

    Args:
        manifest: The cache.
        split: Name of the split.
        in_full: Compare the checksums of the tokens too, which reads them all.
        tell: Gets the size of each file that is found whole.

    Raises:
        UserError: If a file is missing, truncated or corrupt.
    """
    for shard in manifest.splits[split]:
        for array, num_bytes in shard.num_bytes.items():
            path = shard.path(manifest.folder, array)
            if not path.is_file():
                raise _damaged(manifest, shard, f"'{path}' is missing")
            size = path.stat().st_size
            if size != num_bytes:
                raise _damaged(manifest, shard, f"'{path}' has {size} bytes, expected {num_bytes}")
            hashed = in_full or array != "tokens"
            if hashed and _sha256(path) != shard.sha256[array]:
                raise _damaged(manifest, shard, f"'{path}' is corrupt (wrong checksum)")
            _check_form(manifest, split, shard, array)
            if tell is not None:
                tell(size)


def _check_form(manifest: Manifest, split: str, shard: ShardRecord, array: str) -> None:
    """Check that an array is of the manifest's counts, which have no checksum themselves."""
    spec = manifest.spec
    per_image = (spec.num_crops[split], spec.num_tokens) if array == "tokens" else ()
    expected = (np.dtype(DTYPES[array]), (shard.count, *per_image))
    path = shard.path(manifest.folder, array)
    try:
        with plain_damage(), path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:  # of tokens whose sum is not looked at
        raise _damaged(manifest, shard, f"'{path}' is no array ({error})") from error
    if (dtype, shape) != expected:
        raise _damaged(manifest, shard, f"'{path}' holds {dtype} {shape}, not {expected}")


def load_array(manifest: Manifest, shard: ShardRecord, array: str) -> np.ndarray:
    """Read one of the arrays of a shard."""
    return np.load(shard.path(manifest.folder, array), allow_pickle=False)


def _damaged(manifest: Manifest, shard: ShardRecord, what: str) -> UserError:
    return UserError(
        f"{what}: remove '{manifest.folder / shard.stem}.*' and run "
        f"`{remake_command(manifest.folder)}`, which writes only what is missing."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
