"""Whether the manifest of a token cache is one: it is read without a checksum of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHOLE = ("codebook_size", "codebook_dim", "shard_size", "batch_size")
WHOLE_BY_SPLIT = ("num_crops", "num_images")
MAPPINGS = ("transform", "files", "encoder", "data", "splits")


def check_types(content: Mapping[str, Any]) -> None:
    """Check that fields have the types that `write_manifest` writes.

    Raises:
        TypeError: If one has not.
        KeyError: If one is missing.
    """
    for name in WHOLE:
        _require(_is_whole(content[name]), name)
    for name in WHOLE_BY_SPLIT:
        _require(isinstance(content[name], dict), name)
        _require(all(map(_is_whole, content[name].values())), name)
    for name in MAPPINGS:
        _require(isinstance(content[name], dict), name)
    names = content["class_names"]
    _require(isinstance(names, list) and all(isinstance(n, str) for n in names), "class_names")
    _require(isinstance(content["tokenizer_hash"], str), "tokenizer_hash")
    _require(isinstance(content["scales"], list), "scales")
    for record in content["splits"].values():
        for shard in record["shards"]:
            _check_shard(shard)


def check_counts(content: Mapping[str, Any]) -> None:
    """Check that shards add up to their splits: none is lost, none is there twice.

    Args:
        content: After `check_types`.

    Raises:
        ValueError: If they do not.
    """
    for split, record in content["splits"].items():
        shards = record["shards"]
        counts = {name: sum(shard[name] for shard in shards) for name in ("count", "skipped")}
        if any(record[name] != total for name, total in counts.items()):
            raise ValueError(f"the shards of {split} are not those that were counted")
        is_whole = sum(counts.values()) == content["num_images"][split]
        if not is_whole or split not in content["num_crops"]:
            raise ValueError(f"the shards of {split} do not hold its images")


def difference(got: Any, expected: Any) -> tuple[str, str]:
    """Name only the entries that differ, and shorten what does not fit a line."""
    if isinstance(got, dict) and isinstance(expected, dict):
        keys = [key for key in {**expected, **got} if got.get(key) != expected.get(key)]
        got = {key: got.get(key) for key in keys}
        expected = {key: expected.get(key) for key in keys}
    elif isinstance(got, list) and isinstance(expected, list) and len(got) != len(expected):
        got, expected = f"of {len(got)} entries", f"of {len(expected)} entries"
    return str(got)[:100], str(expected)[:100]


def _check_shard(shard: Any) -> None:
    _require(_is_whole(shard["count"]) and _is_whole(shard["skipped"]), "count")
    _require(isinstance(shard["num_bytes"], dict) and isinstance(shard["sha256"], dict), "shards")
    _require(all(map(_is_whole, shard["num_bytes"].values())), "num_bytes")


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _require(is_right: bool, name: str) -> None:
    if not is_right:
        raise TypeError(f"{name} is of another type")
