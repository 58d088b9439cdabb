import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from varlit.data.loader import ResumableLoader
from varlit.data.order import BatchIndex
from varlit.data.tokens.manifest import CacheSpec, begin_cache
from varlit.data.tokens.module import TokenDataModule
from varlit.data.tokens.reader import check_shards, open_tokens
from varlit.errors import UserError

MakeCache = Callable[[Path, CacheSpec], Path]


def index(ids: list[int], views: list[int]) -> BatchIndex:
    return BatchIndex(np.array(ids), np.array(views))


def test_a_batch_is_gathered_from_all_its_shards_in_order(cache: Path) -> None:
    data = open_tokens(cache, "train")
    ids = [9, 0, 5, 4, 3, 8]
    batch = data[index(ids, [0] * 6)]
    assert batch["tokens"].dtype == batch["label"].dtype == torch.int64
    assert batch["tokens"].tolist() == [[i * 10] * 5 for i in ids]
    assert batch["label"].tolist() == [i % 2 for i in ids]
    assert set(batch) == {"tokens", "label"}


def test_the_crop_is_a_function_of_seed_image_and_view(cache: Path) -> None:
    data = open_tokens(cache, "train", seed=1)
    ids = np.tile(np.arange(10), 30)
    views = np.repeat(np.arange(1, 31), 10)
    crops = data[BatchIndex(ids, views)]["tokens"][:, 0] % 10
    assert torch.equal(crops, data[BatchIndex(ids, views)]["tokens"][:, 0] % 10)
    assert set(crops.tolist()) == {0, 1, 2}
    alone = data[index([4], [7])]["tokens"][0, 0] % 10
    assert alone == crops[(ids == 4) & (views == 7)][0], "the rest of the batch does not matter"
    other = open_tokens(cache, "train", seed=2)[BatchIndex(ids, views)]["tokens"][:, 0] % 10
    assert not torch.equal(crops, other)


def test_only_paths_travel_to_workers(cache: Path) -> None:
    data = open_tokens(cache, "train")
    first = data[index([1], [0])]["tokens"]
    assert data._maps is not None
    copy = pickle.loads(pickle.dumps(data))
    assert copy._maps is None
    assert torch.equal(copy[index([1], [0])]["tokens"], first)


@pytest.mark.parametrize("given", ["tok", "runs/tok", "runs/tok/tokens"])
def test_a_cache_is_found_by_name_run_or_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(cache.parents[2])
    data = TokenDataModule(given, batch_size=5)
    assert (data.num_classes, data.class_names) == (2, ("cat", "dog"))
    assert data.scales.sides == (1, 2)
    assert data.tokenizer_hash == "a" * 64
    assert data.tokenizer_folder == "runs/tok/tokens/tokenizer"
    train = torch.cat([batch["tokens"][:, 0] // 10 for batch in data.train_dataloader()])
    assert sorted(train.tolist()) == list(range(10))
    val = torch.cat([batch["tokens"][:, 0] for batch in loaded(data.val_dataloader())])
    assert val.tolist() == [0, 10, 20]


def test_workers_gather_what_the_main_process_gathers(cache: Path) -> None:
    alone, shared = (
        list(TokenDataModule(str(cache), 5, num_workers=n).train_dataloader()) for n in (0, 2)
    )
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a["tokens"], b["tokens"])


def test_a_cache_without_a_val_split_validates_on_nothing(
    tmp_path: Path, make_cache: MakeCache, spec: CacheSpec
) -> None:
    make_cache(tmp_path, dataclasses.replace(spec, num_images={"train": 4}, num_crops={"train": 1}))
    data = TokenDataModule(str(tmp_path), batch_size=2)
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match="no split 'val': it has train"):
        open_tokens(tmp_path, "val")


def test_no_cache_names_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/tok9/tokens'.*make cache-tokens NAME=tok9"):
        TokenDataModule("tok9")
    with pytest.raises(UserError, match=r"set data\.tokens"):
        TokenDataModule()


def test_an_unfinished_cache_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: CacheSpec
) -> None:
    monkeypatch.chdir(tmp_path)
    begin_cache(tmp_path / "runs" / "tok" / "tokens", spec)
    with pytest.raises(UserError, match="unfinished: go on with `make cache-tokens NAME=tok`"):
        TokenDataModule("tok")


def loaded(loader: ResumableLoader | list[ResumableLoader]) -> ResumableLoader:
    assert isinstance(loader, ResumableLoader)
    return loader


def damage(cache: Path, name: str, change: str) -> None:
    path = cache / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if change == "truncated":
        path.write_bytes(content[:-2])
    elif change == "corrupt":
        content[-1] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["train-00001.tokens.npy", "val-00000.labels.npy"])
@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "is missing"), ("truncated", "bytes, expected"), ("corrupt", "is corrupt")],
)
def test_damaged_shards_are_refused_before_training(
    cache: Path, name: str, change: str, message: str
) -> None:
    damage(cache, name, change)
    data = TokenDataModule(str(cache))
    with pytest.raises(UserError, match=f"{name}.*{message}.*remove.*make cache-tokens NAME=tok"):
        data.setup("fit")


def test_large_caches_are_checked_by_size_and_labels(cache: Path) -> None:
    manifest = TokenDataModule(str(cache)).manifest
    damage(cache, "train-00001.tokens.npy", "corrupt")
    check_shards(manifest, "train", in_full=False)
    with pytest.raises(UserError, match="is corrupt"):
        check_shards(manifest, "train", in_full=True)
    damage(cache, "train-00001.labels.npy", "corrupt")
    with pytest.raises(UserError, match="is corrupt"):
        check_shards(manifest, "train", in_full=False)


def test_a_label_without_a_class_is_refused_before_training(cache: Path) -> None:
    labels = cache / "train-00000.labels.npy"
    before = hashlib.sha256(labels.read_bytes()).hexdigest()
    np.save(labels, np.array([0, 1, 2, 7], np.int32))
    after = hashlib.sha256(labels.read_bytes()).hexdigest()
    manifest = cache / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=r"2 label.s. such as 2: expected 0 to 1, as there are 2"):
        TokenDataModule(str(cache)).setup("fit")
