import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from varlit.data.tokens.manifest import CacheSpec, begin_cache, read_manifest
from varlit.data.tokens.writer import merge_manifest
from varlit.data.whole_files import write_bytes
from varlit.errors import UserError

SPEC = CacheSpec(
    tokenizer_hash="a" * 64,
    scales=(1, 2),
    codebook_size=64,
    codebook_dim=8,
    class_names=("cat", "dog"),
    num_crops={"train": 1},
    shard_size=4,
    num_images={"train": 0},
    transform={"image_size": 32, "seed": 0},
    files={"train": "x"},
    encoder={"torch": "2.15.0"},
)


def change(**kwargs: Any) -> CacheSpec:
    return dataclasses.replace(SPEC, **kwargs)


def test_a_cache_begun_by_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tok" / "tokens"
    begin_cache(folder, SPEC)
    begin_cache(folder, SPEC)
    with pytest.raises(UserError, match="made by tokenizer aaaaaaaaaaaa, this one is bbbb") as e:
        begin_cache(folder, change(tokenizer_hash="b" * 64))
    assert "make cache-tokens NAME=tok" in str(e.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_crops": {"train": 2}}, "begun with num_crops {'train': 1}, now it is {'train': 2}"),
        ({"shard_size": 8}, "begun with shard_size 4, now it is 8"),
        (
            {"num_images": {"train": 9}},
            "begun with num_images {'train': 0}, now it is {'train': 9}",
        ),
        ({"class_names": ("cat",)}, "class_names of 2 entries, now it is of 1 entries"),
        (
            {"transform": {"image_size": 64, "seed": 0}},
            "begun with transform {'image_size': 32}, now it is {'image_size': 64}",
        ),
        ({"files": {"train": "y"}}, "begun with files {'train': 'x'}, now it is {'train': 'y'}"),
        ({"encoder": {"torch": "3"}}, "encoder {'torch': '2.15.0'}, now it is {'torch': '3'}"),
    ],
    ids=str,
)
def test_a_cache_begun_with_other_settings_is_refused(
    tmp_path: Path, kwargs: dict[str, Any], message: str
) -> None:
    begin_cache(tmp_path, SPEC)
    with pytest.raises(UserError, match=re.escape(message)):
        begin_cache(tmp_path, change(**kwargs))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"codebook_size": 65_537}, "codebook_size 65537 does not fit.*at most 65536"),
        ({"num_crops": {"train": 0}}, "num_crops is 0: expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"shard_size": 0}, "shard_size is 0: expected at least 1"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        change(**kwargs)


def test_no_cache_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with `make cache-tokens NAME=tok`"):
        read_manifest(tmp_path / "tok" / "tokens")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"schema_version": 1}', "schema version 1, this varlit reads 2: remove the folder"),
        ('{"schema_version": 2, "splits": {}}', "is damaged"),
    ],
    ids=str,
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_the_manifest_says_what_the_cache_holds(tmp_path: Path) -> None:
    begin_cache(tmp_path, SPEC)
    merge_manifest(tmp_path, SPEC, {"class_path": "x"})
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["schema_version"] == 2
    assert (content["scales"], content["num_classes"]) == ([1, 2], 2)
    assert content["splits"] == {"train": {"count": 0, "skipped": 0, "shards": []}}
    assert (content["num_crops"], content["files"]) == ({"train": 1}, {"train": "x"})
    assert content["encoder"] == {"torch": "2.15.0"}
    assert len(content["class_map_sha256"]) == 64
    assert read_manifest(tmp_path).data == {"class_path": "x"}


def test_a_manifest_whose_classes_were_changed_is_refused(tmp_path: Path) -> None:
    begin_cache(tmp_path, SPEC)
    merge_manifest(tmp_path, SPEC)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"dog"', '"cow"'))
    with pytest.raises(UserError, match="class_names do not fit class_map_sha256"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"stem": "../other/train-00000"},
        {"stem": "train-00001"},
        {"num_bytes": 5},
        {"num_bytes": {"tokens": 5}},
        {"sha256": {}},
        {"count": -1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_whose_shards_were_changed_is_refused(
    cache: Path, changed: dict[str, Any]
) -> None:
    content = json.loads((cache / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0] |= changed
    (cache / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(cache)


def test_a_manifest_without_settings_of_the_images_is_refused(cache: Path) -> None:
    content = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(content | {"data": [1]}))
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(cache)


def test_one_crop_is_the_centre_and_several_are_random() -> None:
    spec = change(num_crops={"train": 3, "val": 1})
    assert list(spec.views("train")) == [1, 2, 3]
    assert list(spec.views("val")) == [0]


def test_a_finished_cache_refuses_another_tokenizer(tmp_path: Path) -> None:
    begin_cache(tmp_path, SPEC)
    manifest = merge_manifest(tmp_path, SPEC)
    manifest.require_tokenizer("a" * 64)
    with pytest.raises(UserError, match="use that tokenizer, or remove the folder"):
        manifest.require_tokenizer("b" * 64)


def test_a_full_disk_is_reported_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"a\.bin.: No space left on .*free.*Free some space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        begin_cache(tmp_path / "file" / "tokens", SPEC)
