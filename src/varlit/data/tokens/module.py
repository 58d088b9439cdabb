"""Training from cached tokens: pyramids gathered by memory map, and their data module."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from varlit.data.draws import PLAIN_VIEW, draw_below
from varlit.data.module import GlobalBatchDataModule
from varlit.data.order import BatchIndex
from varlit.data.tokens.manifest import (
    MANIFEST_FILE,
    SPEC_FILE,
    TOKENIZER_FOLDER,
    Manifest,
    ShardRecord,
    read_manifest,
    remake_command,
)
from varlit.data.tokens.writer import check_labels
from varlit.errors import UserError
from varlit.ops.scales import Scales

RUNS_FOLDER = "runs"
ALWAYS_HASHED_BYTES = 256 * 2**20
"""Caches up to this size are checked in full when opened; larger ones by the size of their files
and the checksum of their labels, or training would start minutes late."""


class TokenDataset:
    """Batches of one split: tokens (B, L) int64 and label (B,) int64.

    View 0 of an image is its first crop, the centre; any other view picks one of the crops by
    (seed, row, view). Files are mapped on first use in each process, so that nothing but paths
    travels to workers.

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
            [np.zeros(0, np.int32), *(_load(shard, manifest, "labels") for shard in shards)]
        )
        self.num_crops, self.num_tokens = manifest.spec.num_crops, manifest.spec.num_tokens
        self.seed = seed
        self._maps: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Gather a batch, in one indexing call for each shard that it touches."""
        crops = self._crops(index)
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

    def _crops(self, index: BatchIndex) -> np.ndarray:
        if self.num_crops == 1:
            return np.zeros_like(index.ids)
        drawn = draw_below(self.num_crops, self.seed, index.ids, index.views)  # B
        return np.where(index.views == PLAIN_VIEW, 0, drawn)

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
    if split not in manifest.splits:
        raise UserError(
            f"the token cache '{folder}' has no split '{split}': it has "
            f"{', '.join(manifest.splits)}."
        )
    check_shards(manifest, split, in_full=manifest.num_bytes() <= ALWAYS_HASHED_BYTES)
    dataset = TokenDataset(manifest, split, seed)
    check_labels(
        dataset.labels,
        manifest.spec.class_names,
        f"the split '{split}' of the token cache '{folder}'",
        f"Mend the data, remove the cache and run `{remake_command(manifest.folder)}`.",
    )
    return dataset


def check_shards(manifest: Manifest, split: str, in_full: bool) -> None:
    """Compare the files of a split with the manifest.

    Args:
        manifest: The cache.
        split: Name of the split.
        in_full: Compare the checksums of the tokens too, which reads them all.

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


class TokenDataModule(GlobalBatchDataModule):
    """Token pyramids that a tokenizer wrote, for training a VAR.

    Batches: tokens (B, L) int64 and label (B,) int64.

    Attributes:
        class_names: Names in the order of the labels.
        num_classes: Number of classes.
        scales: The schedule of token maps.
        tokenizer_folder: The tokenizer that wrote the cache, as a path.
        tokenizer_hash: Its fingerprint.

    Args:
        tokens: A tokenizer's run (name or folder), or the folder of a cache.
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read data, for each device; a memory map needs none.
        seed: Seed of order and choice of crops.

    Raises:
        UserError: If there is no finished cache; names the command that makes it.
    """

    def __init__(
        self, tokens: str = "", batch_size: int = 256, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.manifest = read_manifest(find_cache(tokens))
        self.class_names = self.manifest.spec.class_names
        self.num_classes = len(self.class_names)
        self.scales = Scales(self.manifest.spec.scales)
        self.tokenizer_hash = self.manifest.spec.tokenizer_hash
        self.tokenizer_folder = str(self.manifest.folder / TOKENIZER_FOLDER)
        self._datasets: dict[str, TokenDataset] = {}

    def setup(self, stage: str) -> None:
        """Check the files of the cache before anything is built.

        Raises:
            UserError: If a file is missing, truncated or corrupt, or a label none of the classes.
        """
        for split in self.manifest.splits:
            self._dataset(split)

    def source(self, split: Literal["train", "val"]) -> TokenDataset | None:
        """Return the pyramids of a split; None if the cache has no such split."""
        return self._dataset(split) if split in self.manifest.splits else None

    def _dataset(self, split: str) -> TokenDataset:
        if split not in self._datasets:
            self._datasets[split] = open_tokens(self.manifest.folder, split, self.seed)
        return self._datasets[split]


def find_cache(tokens: str) -> Path:
    """Find the cache that a path or the name of a run means.

    Raises:
        UserError: If there is none.
    """
    if not tokens:
        raise UserError(
            "no token cache: set data.tokens to a tokenizer's run; train it with `make "
            "train-tokenizer`, make its cache with `make cache-tokens NAME=<tokenizer run>` "
            "(CONF=digits, for all of these, needs no download)."
        )
    given = Path(tokens).expanduser()
    candidates = [given, given / "tokens", Path(RUNS_FOLDER) / given / "tokens"]
    for marker in (MANIFEST_FILE, SPEC_FILE):
        for folder in candidates:
            if (folder / marker).is_file():
                return folder
    raise UserError(
        f"no token cache in {', '.join(repr(str(folder)) for folder in candidates)}: make it with "
        f"`{remake_command(given if given.name == 'tokens' else given / 'tokens')}` once its "
        "tokenizer is trained (`make train-tokenizer`; CONF=digits, for all of these, needs no "
        "download)."
    )


def _damaged(manifest: Manifest, shard: ShardRecord, what: str) -> UserError:
    return UserError(
        f"{what}: remove '{manifest.folder / shard.stem}.*' and run "
        f"`{remake_command(manifest.folder)}`, which writes only what is missing."
    )


def _load(shard: ShardRecord, manifest: Manifest, array: str) -> np.ndarray:
    return np.load(shard.path(manifest.folder, array), allow_pickle=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
