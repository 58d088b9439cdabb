import json
from pathlib import Path
from typing import Any

import pytest

from varlit.data.formats.shards_file import (
    SHARDS_FILE,
    Shard,
    ShardList,
    expand_braces,
    read_shard_list,
    write_shard_list,
)
from varlit.errors import UserError

LISTED = ShardList(
    ("cat", "d\u00f6g"),
    {
        "train": (Shard("train-000000.tar", 3, 10240, "ab"), Shard("b/1.tar", 0, 1024, "cd")),
        "val": (Shard("val-000000.tar", 2, 10240, "ef"),),
    },
)


def test_what_is_written_is_read_from_the_file_and_from_its_text(tmp_path: Path) -> None:
    path = write_shard_list(LISTED, tmp_path)
    assert path == tmp_path / SHARDS_FILE
    assert read_shard_list(path) == LISTED
    assert read_shard_list(path.read_text()) == LISTED
    assert LISTED.count("train") == 3
    assert json.loads(path.read_text())["format"] == "varlit shards"


def changed(tmp_path: Path, **changes: Any) -> str:
    content = json.loads(write_shard_list(LISTED, tmp_path).read_text())
    return json.dumps(content | changes)


def one(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    return {"train": [{"file": "a.tar", "count": 1, "num_bytes": 1, "sha256": "x"} | changes]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "other"}, 'expected "format": "varlit shards"'),
        ({"version": 2}, "version 2, this varlit reads 1"),
        ({"class_names": []}, "class_names are not names"),
        ({"class_names": "abc"}, "class_names are not names"),
        ({"splits": {}}, "no train shards"),
        ({"splits": []}, "items"),
        ({"splits": {"train": [{"file": "a.tar"}]}}, "no 'count'"),
        ({"splits": {"train": [5]}}, "subscriptable"),
        ({"splits": one(file="../a.tar")}, "not below the folder"),
        ({"splits": one(file="/etc/passwd")}, "not below the folder"),
        ({"splits": one(file="http://x/a.tar")}, "not below the folder"),
        ({"splits": one(file=3)}, "a shard is called 3"),
        ({"splits": one(count=-1)}, "a size of -1"),
        ({"splits": one(num_bytes=True)}, "a size of True"),
        ({"splits": one() | {"val": one()["train"]}}, "listed twice"),
    ],
)
def test_another_content_is_refused_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=f"'s3://x/shards.json' is not a list.*{reason}.*index"):
        read_shard_list(changed(tmp_path, **changes), "s3://x/shards.json")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_shard_list(tmp_path / SHARDS_FILE)
    with pytest.raises(UserError, match="not valid JSON"):
        read_shard_list("<html>")
    with pytest.raises(UserError, match="expected"):
        read_shard_list("[]")


@pytest.mark.parametrize(
    "pattern",
    [
        "plain.tar",
        "train-{08..11}.tar",
        "train-{0..3}.tar",
        "{1..010}",
        "{a,b}/x-{1..2}.tar",
        "{a,b{1..2},c}{3..1}",
        "a{,b}",
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str) -> None:
    braceexpand = pytest.importorskip("braceexpand")
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a{1..2", "not closed"),
        ("}{", "not closed"),
        ("{a}", "neither a range"),
        ("{0..99999999}", "more than 100,000"),
        ("{0..99999999}{0..99999999}", "more than 100,000"),
    ],
)
def test_a_broken_pattern_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        expand_braces(pattern)
