"""The token cache on disk: what it is made from, its manifest, and files that appear whole.

A cache folder holds `spec.json` (what it is made from, written first), for each shard
`<split>-00000.tokens.npy` uint16 (n, crops, L), `.labels.npy` int32 (n,), `.ids.npy` int64 (n,)
and a `.json` that marks it as finished, `tokenizer/`, and `manifest.json`, written last. Shard s
covers the dataset's ids s * shard_size .. (s + 1) * shard_size - 1, so what is in a file does not
depend on how many processes wrote the cache. No file holds a time: the same images, tokenizer,
settings and machine give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from varlit.data.order import EncodingBatches
from varlit.data.tokens.manifest_checks import check_counts, check_types, difference
from varlit.data.whole_files import read_json, write_json
from varlit.errors import UserError
from varlit.ops.scales import Scales

SCHEMA_VERSION = 2
MANIFEST_FILE, SPEC_FILE, TOKENIZER_FOLDER = "manifest.json", "spec.json", "tokenizer"
ARRAYS = ("tokens", "labels", "ids")
MAX_CODES = 2**16
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class CacheSpec:
    """All that the tokens of a cache depend on.

    Attributes:
        tokenizer_hash: `varlit.models.files.tokenizer_hash` of the tokenizer.
        scales: Sides of the token maps.
        codebook_size: V, at most 65,536.
        codebook_dim: Dimension of a code.
        class_names: Names in the order of the labels.
        num_crops: Views of each image, by split: one is the centre crop, several are random ones.
        shard_size: Ids that a shard covers.
        num_images: Images of each split, broken ones included.
        transform: How pixels were made and random views drawn, as the data module describes it.
        files: Checksum of the ordered list of images of each split, where images are files.
        encoder: What the rounding depended on, see `varlit.data.tokens.rounding`.
        batch_size: Most views that were encoded at once.
    """

    tokenizer_hash: str
    scales: tuple[int, ...]
    codebook_size: int
    codebook_dim: int
    class_names: tuple[str, ...]
    num_crops: Mapping[str, int]
    shard_size: int
    num_images: Mapping[str, int]
    transform: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = DEFAULT_BATCH_SIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.codebook_size > MAX_CODES:
            raise UserError(
                f"codebook_size {self.codebook_size} does not fit the cache's 16-bit tokens: "
                f"expected at most {MAX_CODES}."
            )
        sizes = {"shard_size": self.shard_size, "batch_size": self.batch_size}
        for name, size in [*sizes.items(), *(("num_crops", n) for n in self.num_crops.values())]:
            if size < 1:
                raise UserError(f"{name} is {size}: expected at least 1.")

    @property
    def num_tokens(self) -> int:
        """L, the tokens of one pyramid."""
        return Scales(self.scales).num_tokens

    @property
    def class_map_sha256(self) -> str:
        """Checksum of the names and their labels."""
        content = json.dumps(dict(enumerate(self.class_names)))
        return hashlib.sha256(content.encode()).hexdigest()

    def views(self, split: str) -> range:
        """Return the views of each image, see `varlit.data.draws`, in the order of the crops."""
        return range(1) if self.num_crops[split] == 1 else range(1, self.num_crops[split] + 1)

    def batches(self, split: str, shards: list[int]) -> EncodingBatches:
        """Return the batches in which shards are encoded."""
        ids = [self.shard_ids(split, shard) for shard in shards]
        return EncodingBatches(ids, self.views(split), self.batch_size)

    def num_shards(self, split: str) -> int:
        """Return the number of shards of a split."""
        return -(-self.num_images[split] // self.shard_size)

    def shard_stem(self, split: str, shard: int) -> str:
        """Return the beginning of the names of a shard's files."""
        return f"{split}-{shard:05d}"

    def shard_ids(self, split: str, shard: int) -> range:
        """Return the dataset ids that a shard covers."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.num_images[split]))


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard.

    Attributes:
        stem: Beginning of its files' names, such as train-00000.
        count: Images in it.
        skipped: Broken images left out.
        num_bytes: Size of each of its files, by array name.
        sha256: Checksum of each of its files, by array name.
    """

    stem: str
    count: int
    skipped: int
    num_bytes: Mapping[str, int]
    sha256: Mapping[str, str]

    def path(self, folder: Path, array: str) -> Path:
        """Return the path of one of its arrays."""
        return folder / f"{self.stem}.{array}.npy"

    @classmethod
    def of(cls, content: Mapping[str, Any], stem: str) -> ShardRecord:
        """Return a record that was read from a file, which may have been edited.

        Args:
            content: Its fields.
            stem: What it must be called, so that no cache leads to the files of another.

        Raises:
            TypeError: If fields are missing, or of other types.
            ValueError: If it is the record of another shard.
        """
        record = cls(**content)
        if record.stem != stem or record.count < 0 or record.skipped < 0:
            raise ValueError(f"the record of {stem} is that of {record.stem}")
        if set(record.num_bytes) != set(ARRAYS) or set(record.sha256) != set(ARRAYS):
            raise ValueError(f"the record of {stem} lacks files")
        return record


@dataclass(frozen=True)
class Manifest:
    """A finished cache.

    Attributes:
        folder: Where it lies.
        spec: What it is made from.
        splits: Finished shards of each split, in order.
        data: Data module that read the images, `class_path` and `init_args`; empty if unknown.
    """

    folder: Path
    spec: CacheSpec
    splits: Mapping[str, tuple[ShardRecord, ...]]
    data: Mapping[str, Any] = field(default_factory=dict)

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return sum(shard.count for shard in self.splits[split])

    def skipped(self, split: str) -> int:
        """Return the number of broken images that were left out of a split."""
        return sum(shard.skipped for shard in self.splits[split])

    def num_bytes(self, *arrays: str) -> int:
        """Return the size of all files in bytes, or of those of some arrays."""
        shards = [shard for split in self.splits.values() for shard in split]
        return sum(shard.num_bytes[array] for shard in shards for array in arrays or ARRAYS)

    def require_tokenizer(self, tokenizer_hash: str) -> None:
        """Check that the cache was made by this tokenizer.

        Raises:
            UserError: If it was made by another.
        """
        _require_same_tokenizer(self.folder, self.spec.tokenizer_hash, tokenizer_hash)


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of a finished cache.

    Raises:
        UserError: If there is none, or it is unfinished, damaged, or of another version.
    """
    folder = Path(folder)
    command = f"`{remake_command(folder)}`"
    if not (folder / MANIFEST_FILE).is_file():
        if (folder / SPEC_FILE).is_file():
            raise UserError(f"the token cache '{folder}' is unfinished: go on with {command}.")
        raise UserError(f"no token cache in '{folder}': make it with {command}.")
    content = read_json(folder / MANIFEST_FILE)
    if content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"'{folder / MANIFEST_FILE}' has schema version {content.get('schema_version')}, this "
            f"varlit reads {SCHEMA_VERSION}: remove the folder and make it again with {command}."
        )
    try:
        check_types(content)
        spec = CacheSpec(**{name: content[name] for name in CacheSpec.__dataclass_fields__})
        Scales(spec.scales)
        splits = {
            split: tuple(
                ShardRecord.of(shard, spec.shard_stem(split, number))
                for number, shard in enumerate(record["shards"])
            )
            for split, record in content["splits"].items()
        }
        if content["class_map_sha256"] != spec.class_map_sha256:
            raise ValueError("class_names do not fit class_map_sha256")
        check_counts(content)
        return Manifest(folder, spec, splits, dict(content["data"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"'{folder / MANIFEST_FILE}' is damaged ({error!r}): remove it and run {command}."
        ) from error


def write_manifest(manifest: Manifest) -> None:
    """Write manifest.json, which makes the cache visible to readers."""
    splits = {
        split: {
            "count": manifest.count(split),
            "skipped": manifest.skipped(split),
            "shards": [asdict(shard) for shard in shards],
        }
        for split, shards in manifest.splits.items()
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        **asdict(manifest.spec),
        "num_classes": len(manifest.spec.class_names),
        "class_map_sha256": manifest.spec.class_map_sha256,
        "data": manifest.data,
        "splits": splits,
    }
    write_json(manifest.folder / MANIFEST_FILE, content)


def begin_cache(folder: Path, spec: CacheSpec) -> None:
    """Make the folder and its spec.json, or check that a cache begun earlier is the same.

    Every process may call it; all of them write the same.

    Raises:
        UserError: If the folder holds a cache of another tokenizer or of other settings, or
            cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}.") from error
    path = folder / SPEC_FILE
    content = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(spec)}))
    if not path.is_file():
        write_json(path, content)
        return
    before = read_json(path)
    _require_same_tokenizer(folder, before.get("tokenizer_hash", ""), spec.tokenizer_hash)
    for name, value in content.items():
        if before.get(name) != value:
            got, expected = difference(value, before.get(name))
            raise UserError(
                f"the token cache '{folder}' was begun with {name} {expected}, now it is {got}: "
                "remove the folder, or set it back."
            )


def remake_command(folder: Path) -> str:
    """Return the command that makes the cache of a run, as far as the folder tells."""
    run = folder.parent.name if folder.name == "tokens" else ""
    return f"make cache-tokens NAME={run or '<tokenizer run>'}"


def _require_same_tokenizer(folder: Path, cached: str, tokenizer_hash: str) -> None:
    if cached != tokenizer_hash:
        raise UserError(
            f"the token cache '{folder}' was made by tokenizer {str(cached)[:12]}, this one is "
            f"{tokenizer_hash[:12]}: use that tokenizer, or remove the folder and run "
            f"`{remake_command(folder)}`."
        )
