import dataclasses
from collections.abc import Collection
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from varlit.data.tokens.manifest import CacheSpec, begin_cache, read_manifest
from varlit.data.tokens.reader import open_tokens
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest, missing_shards
from varlit.errors import UserError

SPEC = CacheSpec(
    tokenizer_hash="a" * 64,
    scales=(1, 2),
    codebook_size=50_000,
    codebook_dim=8,
    class_names=("cat", "dog", "owl"),
    num_crops={"train": 2, "val": 1},
    shard_size=4,
    num_images={"train": 10, "val": 3},
    transform={"image_size": 32},
    batch_size=5,  # two images with both crops
)


def pyramid(sample_id: int, crop: int) -> list[int]:
    """A token pyramid that tells where it came from."""
    return [sample_id * 1000 + crop * 100 + position for position in range(SPEC.num_tokens)]


def encode(
    folder: Path,
    spec: CacheSpec = SPEC,
    rank: int = 0,
    world_size: int = 1,
    broken: Collection[int] = (),
    max_batches: int | None = None,
) -> list[int]:
    """Do what a run of one process does; return the ids that it encoded."""
    encoded: list[int] = []
    for split in spec.num_images:
        writer = TokenShardWriter(folder, split, spec, rank, world_size)
        for index in islice(writer.pending().batches(0), max_batches):
            batch = list(zip(index.ids.tolist(), index.views.tolist(), strict=True))
            encoded += [i for i, _ in batch]
            writer.add(
                torch.tensor([pyramid(i, a) for i, a in batch]),
                torch.tensor([i % 3 for i, _ in batch]),
                torch.tensor([-1 - i if i in broken else i for i, _ in batch]),
                torch.tensor([a for _, a in batch]),
            )
    return encoded


def begun(folder: Path) -> Path:
    begin_cache(folder, SPEC)
    return folder


def everything(folder: Path, split: str = "train") -> tuple[list[list[Any]], list[int]]:
    data = open_tokens(folder, split)
    return [np.load(path).tolist() for path in data.paths], data.labels.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_what_is_read_is_what_was_written_on_any_number_of_processes(
    tmp_path: Path, world_size: int
) -> None:
    begun(tmp_path)
    for rank in range(world_size):
        encode(tmp_path, rank=rank, world_size=world_size)
    manifest = merge_manifest(tmp_path, SPEC)
    assert (manifest.count("train"), manifest.count("val")) == (10, 3)
    shards, labels = everything(tmp_path)
    assert [len(shard) for shard in shards] == [4, 4, 2]
    assert list(chain(*shards)) == [[pyramid(i, 1), pyramid(i, 2)] for i in range(10)]
    assert labels == [i % 3 for i in range(10)]
    back = read_manifest(tmp_path)
    assert back.spec == SPEC
    assert back == dataclasses.replace(manifest, splits=dict(manifest.splits))


def test_the_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    contents = []
    for world_size in (1, 3):
        folder = begun(tmp_path / str(world_size))
        for rank in range(world_size):
            encode(folder, rank=rank, world_size=world_size)
        contents.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert contents[0] == contents[1]


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path: Path) -> None:
    begun(tmp_path)
    encode(tmp_path, max_batches=3)  # a shard and a half
    assert missing_shards(tmp_path, SPEC) == ["train-00001", "train-00002"]
    with pytest.raises(UserError, match=r"1 of 3 train shards.*run the same command again"):
        merge_manifest(tmp_path, SPEC)
    with pytest.raises(UserError, match="unfinished: go on with"):
        read_manifest(tmp_path)
    assert set(encode(tmp_path, rank=0, world_size=2)) == {8, 9}
    assert set(encode(tmp_path, rank=1, world_size=2)) == {4, 5, 6, 7}
    merge_manifest(tmp_path, SPEC)
    assert encode(tmp_path) == []
    assert list(chain(*everything(tmp_path)[0])) == [
        [pyramid(i, 1), pyramid(i, 2)] for i in range(10)
    ]


def test_a_shard_with_a_truncated_file_is_written_again(tmp_path: Path) -> None:
    encode(begun(tmp_path))
    path = tmp_path / "train-00001.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])
    assert set(encode(tmp_path)) == {4, 5, 6, 7}
    merge_manifest(tmp_path, SPEC)


@pytest.mark.parametrize("record", ["{", '{"a": 1}', "[]", ""])
def test_a_shard_with_a_damaged_record_is_written_again(tmp_path: Path, record: str) -> None:
    encode(begun(tmp_path))
    (tmp_path / "train-00001.json").write_text(record)
    assert set(encode(tmp_path)) == {4, 5, 6, 7}
    merge_manifest(tmp_path, SPEC)


def test_a_record_of_another_shard_does_not_count(tmp_path: Path) -> None:
    encode(begun(tmp_path))
    other = (tmp_path / "train-00000.json").read_text()
    (tmp_path / "train-00001.json").write_text(other)
    assert missing_shards(tmp_path, SPEC) == ["train-00001"]


def test_broken_images_are_left_out_and_counted(tmp_path: Path) -> None:
    encode(begun(tmp_path), broken={2, 8, 9})  # 8 and 9 are a whole shard; 2 is in val too
    manifest = merge_manifest(tmp_path, SPEC)
    assert (manifest.count("train"), manifest.skipped("train")) == (7, 3)
    assert (manifest.count("val"), manifest.skipped("val")) == (2, 1)
    data = open_tokens(tmp_path, "train")
    assert data.labels.tolist() == [i % 3 for i in (0, 1, 3, 4, 5, 6, 7)]
    ids = np.concatenate([np.load(tmp_path / f"train-0000{s}.ids.npy") for s in range(3)])
    assert ids.tolist() == [0, 1, 3, 4, 5, 6, 7]


def test_nothing_temporary_is_left_behind(tmp_path: Path) -> None:
    begun(tmp_path)
    left = tmp_path / f".train-00001.tokens.npy.{'0f' * 16}"  # by a process that was killed
    left.write_bytes(b"half")
    encode(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_largest_token_fits(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        SPEC, codebook_size=65_536, num_crops={"train": 1}, num_images={"train": 1}, scales=(1,)
    )
    begin_cache(tmp_path, spec)
    one = torch.tensor([0])
    TokenShardWriter(tmp_path, "train", spec).add(torch.tensor([[65_535]]), one, one, one)
    merge_manifest(tmp_path, spec)
    assert np.load(tmp_path / "train-00000.tokens.npy").tolist() == [[[65_535]]]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_is_not_written(tmp_path: Path, label: int) -> None:
    writer = TokenShardWriter(begun(tmp_path), "val", SPEC)
    rows = torch.tensor([[0] * SPEC.num_tokens]), torch.tensor([label])
    with pytest.raises(UserError, match=f"val images has 1 label.s. such as {label}: .* 0 to 2"):
        writer.add(*rows, torch.tensor([0]), torch.tensor([0]))
    writer.add(*rows, torch.tensor([-1]), torch.tensor([0]))  # a broken image's is left out
