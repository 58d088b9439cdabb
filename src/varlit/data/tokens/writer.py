"""Writing a token cache: shards that many processes fill, and the manifest that joins them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from varlit.data.order import EncodingBatches
from varlit.data.tokens.manifest import (
    ARRAYS,
    CacheSpec,
    Manifest,
    ShardRecord,
    write_manifest,
)
from varlit.data.whole_files import read_json, write_bytes, write_json
from varlit.errors import UserError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
"""How `varlit.data.whole_files` names what is not whole yet."""


class TokenShardWriter:
    """Collects the pyramids of one split and writes each shard when it is full.

    Rank r owns the shards s with s % world_size == r. A finished shard is never written again, so
    an interrupted encoding goes on where it stopped, on any number of processes.

    Args:
        folder: The cache, already begun by `begin_cache`.
        split: Name of the split.
        spec: What the cache is made from.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, folder: Path, split: str, spec: CacheSpec, rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.split, self.spec = folder, split, spec
        own = range(rank, spec.num_shards(split), world_size)
        self._pending = [s for s in own if read_shard(folder, spec, split, s) is None]
        for shard in self._pending:
            # Of a process that was killed; no other one writes this shard.
            remove_leftovers(folder, spec.shard_stem(split, shard))
        self._filling: _Filling | None = None

    def pending(self) -> EncodingBatches:
        """Return the batches that this rank still has to encode, in the order that `add` wants."""
        return self.spec.batches(self.split, self._pending)

    def add(self, tokens: Tensor, labels: Tensor, ids: Tensor, crops: Tensor) -> None:
        """Take rows in the order of `pending`, all crops of an id next to each other.

        Args:
            tokens: (B, L) integers below the codebook size.
            labels: (B,) integers.
            ids: (B,) dataset ids; -1 - id marks an image that could not be read.
            crops: (B,) integers, the views that they show.

        Raises:
            UserError: If a label is none of the classes.
        """
        codes, marked = tokens.cpu().numpy(), ids.cpu().numpy()
        classes, views = labels.cpu().numpy(), crops.cpu().numpy()
        assert codes.shape[1] == self.spec.num_tokens, codes.shape
        assert codes.size == 0 or 0 <= codes.min() <= codes.max() < self.spec.codebook_size
        broken = marked < 0
        true_ids = np.where(broken, -1 - marked, marked)
        check_labels(
            classes[~broken],
            self.spec.class_names,
            f"a batch of the {self.split} images",
            "Mend the labels or the class_names of the data.",
        )
        shards = true_ids // self.spec.shard_size
        for shard in np.unique(shards):
            rows = shards == shard
            filling = self._filling_of(int(shard))
            filling.add(
                true_ids[rows],
                views[rows] - self.spec.views(self.split).start,
                codes[rows],
                classes[rows],
                broken[rows],
            )
            if filling.seen.all():
                self._finish(int(shard), filling)
                self._filling = None

    def _filling_of(self, shard: int) -> _Filling:
        if self._filling is None:
            self._filling = _Filling(
                self.spec.shard_ids(self.split, shard),
                self.spec.num_crops[self.split],
                self.spec.num_tokens,
            )
        assert self._filling.first == shard * self.spec.shard_size, "rows come shard by shard"
        return self._filling

    def _finish(self, shard: int, filling: _Filling) -> None:
        good = np.flatnonzero(~filling.broken)
        arrays: dict[str, np.ndarray] = {
            "tokens": filling.tokens[good],
            "labels": filling.labels[good],
            "ids": good + filling.first,
        }
        stem = self.spec.shard_stem(self.split, shard)
        contents = {name: npy_bytes(array) for name, array in arrays.items()}
        record = ShardRecord(
            stem,
            count=len(good),
            skipped=int(filling.broken.sum()),
            num_bytes={name: len(content) for name, content in contents.items()},
            sha256={n: hashlib.sha256(content).hexdigest() for n, content in contents.items()},
        )
        for name, content in contents.items():
            write_bytes(record.path(self.folder, name), content)
        write_json(self.folder / f"{stem}.json", asdict(record))


def read_shard(folder: Path, spec: CacheSpec, split: str, shard: int) -> ShardRecord | None:
    """Return the record of a shard; None if it is not finished or its files are not whole."""
    stem = spec.shard_stem(split, shard)
    try:
        record = ShardRecord.of(read_json(folder / f"{stem}.json"), stem)
    except (UserError, TypeError, ValueError):
        return None
    for array in ARRAYS:
        file = record.path(folder, array)
        if not file.is_file() or file.stat().st_size != record.num_bytes[array]:
            return None
    return record


def missing_shards(folder: Path, spec: CacheSpec) -> list[str]:
    """Return the names of the shards that are not finished."""
    return [
        spec.shard_stem(split, shard)
        for split in spec.num_images
        for shard in range(spec.num_shards(split))
        if read_shard(folder, spec, split, shard) is None
    ]


def merge_manifest(
    folder: Path, spec: CacheSpec, data: Mapping[str, Any] | None = None
) -> Manifest:
    """Join the finished shards of all processes to a cache; for one process, after a barrier.

    Args:
        folder: The cache.
        spec: What it is made from.
        data: Data module that read the images, see `Manifest`.

    Raises:
        UserError: If a shard is not finished.
    """
    splits: dict[str, tuple[ShardRecord, ...]] = {}
    for split in spec.num_images:
        records = [read_shard(folder, spec, split, s) for s in range(spec.num_shards(split))]
        finished = tuple(record for record in records if record is not None)
        if len(finished) < len(records):
            raise UserError(
                f"{len(finished)} of {len(records)} {split} shards of '{folder}' are finished: "
                "run the same command again to go on."
            )
        splits[split] = finished
    manifest = Manifest(folder, spec, splits, data or {})
    write_manifest(manifest)
    return manifest


def remove_leftovers(folder: Path, stem: str = "") -> None:
    """Remove what a killed process left under temporary names; nobody may be writing there now.

    Args:
        folder: The cache.
        stem: Beginning of the names of the files that were to appear.
    """
    for path in folder.glob(f".{stem}*"):
        if path.is_file() and TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def check_labels(labels: np.ndarray, class_names: Sequence[str], where: str, remedy: str) -> None:
    """Check on the CPU what an embedding on a GPU would answer with an assertion of the device.

    Args:
        labels: (N,) integers.
        class_names: Names in the order of the labels.
        where: What holds the labels, as the message says it.
        remedy: What to do about it.

    Raises:
        UserError: If a label is outside of 0 .. len(class_names) - 1.
    """
    wrong = labels[(labels < 0) | (labels >= len(class_names))]
    if wrong.size:
        raise UserError(
            f"{where} has {wrong.size} label(s) such as {wrong[0]}: expected 0 to "
            f"{len(class_names) - 1}, as there are {len(class_names)} classes. {remedy}"
        )


class _Filling:
    """A shard on its way to being complete."""

    def __init__(self, ids: range, num_crops: int, num_tokens: int) -> None:
        self.first = ids.start
        self.tokens = np.zeros((len(ids), num_crops, num_tokens), dtype=np.uint16)
        self.labels = np.zeros(len(ids), dtype=np.int32)
        self.broken = np.zeros(len(ids), dtype=bool)
        self.seen = np.zeros((len(ids), num_crops), dtype=bool)

    def add(
        self,
        ids: np.ndarray,
        crops: np.ndarray,
        tokens: np.ndarray,
        labels: np.ndarray,
        broken: np.ndarray,
    ) -> None:
        rows = ids - self.first
        self.tokens[rows, crops] = tokens
        self.labels[rows] = labels
        self.broken[rows[broken]] = True
        self.seen[rows, crops] = True


def npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
