"""A small cache whose tokens tell where they come from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from varlit.data.tokens.manifest import CacheSpec, begin_cache
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest

SPEC = CacheSpec(
    tokenizer_hash="a" * 64,
    scales=(1, 2),
    codebook_size=4096,
    codebook_dim=8,
    class_names=("cat", "dog"),
    num_crops={"train": 3, "val": 1},
    shard_size=4,
    num_images={"train": 10, "val": 3},
    transform={},
)


def write_cache(folder: Path, spec: CacheSpec = SPEC) -> Path:
    """A cache whose token says its image and crop: id * 10 + crop."""
    begin_cache(folder, spec)
    for split in spec.num_images:
        writer = TokenShardWriter(folder, split, spec)
        for index in writer.pending().batches(0):
            ids, views = torch.from_numpy(index.ids), torch.from_numpy(index.views)
            crops = views - spec.views(split).start
            tokens = (ids * 10 + crops)[:, None].expand(-1, spec.num_tokens)
            writer.add(tokens, ids % 2, ids, views)
    merge_manifest(folder, spec)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "runs" / "tok" / "tokens")


@pytest.fixture
def spec() -> CacheSpec:
    return SPEC


@pytest.fixture
def make_cache() -> Callable[[Path, CacheSpec], Path]:
    return write_cache
