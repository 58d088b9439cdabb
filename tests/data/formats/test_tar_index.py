import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from varlit.data.formats import tar_index
from varlit.data.formats.tar_index import INDEX_SUFFIX, TarIndex, index_tar, read_index

Members = list[tuple[str, bytes]]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path: Path, members: Members, kind: str = "ustar") -> Path:
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def sample(number: int, size: int = 700) -> Members:
    body = bytes([number]) * size
    return [(f"{number:03d}.jpg", body), (f"{number:03d}.cls", str(number).encode())]


def samples(count: int, size: int = 700) -> Members:
    return [member for number in range(count) for member in sample(number, size)]


def contents(path: Path, index: TarIndex) -> list[bytes]:
    whole = path.read_bytes()
    pairs = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return [whole[offset : offset + size] for offset, size in pairs]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_dialect_is_walked_as_tarfile_does(tmp_path: Path, kind: str) -> None:
    folder = "n" * 80 + "/" + "m" * 60
    members = samples(3, size=1024)
    members += [(f"{folder}/x.PNG", b"long"), (f"{folder}/x.cls", b"7\n")]
    if kind != "ustar":
        members += [("\u00e9" * 90 + ".jpg", b"wide"), ("\u00e9" * 90 + ".cls", b"8")]
        members += [("deep/" * 50 + "y.jpg", b"deep"), ("deep/" * 50 + "y.cls", b"9")]
    path = write_tar(tmp_path / "a.tar", members, kind)
    index = index_tar(path)
    assert (index.damage, index.num_skipped) == ("", 0)
    with tarfile.open(path) as tar:
        images = [m for m in tar if not m.name.endswith(".cls")]
        assert [os.fsdecode(n) for n in index.names.tolist()] == [m.name for m in images]
        assert index.offsets.tolist() == [m.offset_data for m in images]
        assert index.sizes.tolist() == [m.size for m in images]
    assert index.labels.tolist() == [0, 1, 2, 7, 8, 9][: len(index)]


def test_folders_links_and_hidden_files_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "dir.jpg"), (tarfile.SYMTYPE, "link.jpg")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        for name, content in [("._000.jpg", b"mac"), *sample(0), ("README", b"words")]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    index = index_tar(path)
    assert (index.names.tolist(), index.damage) == ([b"000.jpg"], "")


def test_labels_come_from_cls_or_json_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            *(("a.jpg", b"1"), ("a.json", b'{"label": 4, "x": 1}'), ("a.txt", b"words")),
            *(("b.cls", b" 5\n"), ("b.json", b'{"label": 6}'), ("b.webp", b"1")),
            *(("c.json", json.dumps({"x": "y" * 2000, "label": 7}).encode()), ("c.png", b"1")),
            *(("d.jpg", b"1"),),
            *(("e.jpg", b"1"), ("e.cls", b"cat")),
            *(("f.jpg", b"1"), ("f.json", b'{"label": true}')),
            *(("g.jpg", b"1"), ("g.json", b"[[[")),
            *(("h.jpg", b"1"), ("h.cls", b"-1")),
            *(("i.seg.png", b"1"), ("i.cls", b"1")),
            *(("a.jpg", b"again"), ("a.cls", b"1")),
        ],
    )
    index = index_tar(path)
    assert index.names.tolist() == [b"a.jpg", b"b.webp", b"c.png"]
    assert index.labels.tolist() == [4, 5, 7]
    assert (index.num_skipped, index.skipped) == (7, "d: no label")


def test_keys_are_webdatasets() -> None:
    pytest.importorskip("webdataset")
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "x.y/b.seg.png", "./c.cls", "d/e.f/g.tar.gz"):
        key, suffix = base_plus_ext(name)
        assert tar_index.split_name(name.encode()) == (key.encode(), f".{suffix}".encode())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", samples(6))


HEADERS = 2 * 512 + 1024 + 512  # of a sample: two headers, 700 bytes and a label in blocks


@pytest.mark.parametrize(
    ("damage", "reason", "left"),
    [
        (lambda b: b[: 3 * HEADERS + 100], "cut off at byte", 3),
        (lambda b: b[: 3 * HEADERS + 800], "cut off at byte", 3),
        (lambda b: b[: 3 * HEADERS], "without an end", 3),
        (lambda b: b[:HEADERS] + b"\xa5" * 600 + b[HEADERS + 600 :], "garbage at byte", 1),
        (lambda b: b[:HEADERS] + bytes(600) + b[HEADERS + 600 :], "hole of zeros", 1),
        (lambda b: b[: 2 * HEADERS] + bytes(2 << 20), "zeros from byte", 2),
        (lambda b: bytes(len(b)), "zeros from byte 0", 0),
        (lambda b: b"", "empty", 0),
        (lambda b: b"\xa5" * 2000, "not a tar file", 0),
        (lambda b: b"\x1f\x8b" + b"\xa5" * 2000, "compressed", 0),
        (lambda b: b[:300], "cut off", 0),
    ],
)
def test_what_lies_before_the_damage_is_used(
    whole: Path, damage: Callable[[bytes], bytes], reason: str, left: int
) -> None:
    before = contents(whole, index_tar(whole))
    whole.write_bytes(damage(whole.read_bytes()))
    index = index_tar(whole)
    assert reason in index.damage
    assert contents(whole, index) == before[:left]
    assert (index.labels.tolist(), index.num_skipped) == (list(range(left)), 0)


def test_a_sample_that_is_whole_before_the_damage_counts(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes()[: 2 * HEADERS + 10])
    assert len(index_tar(whole)) == 2


def test_every_cut_gives_a_part_of_the_images(whole: Path) -> None:
    content, before = whole.read_bytes(), index_tar(whole)
    for length in range(0, len(content), 437):
        whole.write_bytes(content[:length])
        index = index_tar(whole)
        assert index.names.tolist() == before.names.tolist()[: len(index)]
        assert contents(whole, index) == contents(whole, before)[: len(index)] or length == 0


def test_random_bytes_anywhere_never_raise(whole: Path) -> None:
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(content)
        at = int(rng.integers(0, len(content) - 8))
        broken[at : at + 8] = rng.bytes(8)
        whole.write_bytes(bytes(broken))
        assert len(index_tar(whole)) <= 6


def refuse_to_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> TarIndex:
        raise AssertionError(f"walked {path} again")

    monkeypatch.setattr(tar_index, "index_tar", refuse)


def same(one: TarIndex, other: TarIndex) -> bool:
    arrays = ("names", "offsets", "sizes", "labels")
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in arrays) and (
        (one.num_bytes, one.mtime_ns, one.num_skipped, one.skipped, one.damage)
        == (other.num_bytes, other.mtime_ns, other.num_skipped, other.skipped, other.damage)
    )


def test_the_index_is_kept_beside_the_shard(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_index(whole)
    assert whole.with_name(whole.name + INDEX_SUFFIX).is_file()
    refuse_to_walk(monkeypatch)
    assert same(read_index(whole), first)


def test_a_changed_shard_is_walked_again(whole: Path) -> None:
    assert len(read_index(whole)) == 6
    write_tar(whole, samples(5, size=900))
    assert len(read_index(whole)) == 5


def test_a_damaged_index_is_made_again(whole: Path) -> None:
    first = read_index(whole)
    kept = whole.with_name(whole.name + INDEX_SUFFIX)
    for content in (b"", b"PK\x03\x04", kept.read_bytes()[:200], b"\x80\x04garbage"):
        kept.write_bytes(content)
        assert same(read_index(whole), first)
    assert len(kept.read_bytes()) > 200


def test_where_the_folder_cannot_be_written_the_cache_folder_is(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cache"))
    whole.with_name(whole.name + INDEX_SUFFIX).mkdir()  # also for root, who may write anywhere
    first = read_index(whole)
    assert len(list((tmp_path / "cache" / "tars").glob("*.npz"))) == 1
    refuse_to_walk(monkeypatch)
    assert same(read_index(whole), first)


def test_a_folder_that_is_read_only_stays_as_it_is_also_for_root(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    whole.parent.chmod(0o555)
    try:
        read_index(whole)
        assert {path.name for path in tmp_path.iterdir()} == {whole.name, "cache"}
    finally:
        whole.parent.chmod(0o755)
    assert len(list((tmp_path / "cache" / "tars").iterdir())) == 1


def test_an_empty_cache_variable_keeps_nothing(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARLIT_CACHE", "")
    assert len(read_index(whole)) == 6
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


def test_a_missing_shard_is_an_empty_index_with_a_reason(tmp_path: Path) -> None:
    index = read_index(tmp_path / "a.tar")
    assert (len(index), index.damage) == (0, "No such file or directory")
