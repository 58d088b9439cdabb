import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from varlit.data import progress
from varlit.data.formats import folder_index
from varlit.data.formats.folder_index import list_names
from varlit.errors import UserError

SUFFIXES = (".png", ".jpeg")
FOLDERS = ("a", "b", "c")
LONG_AGO_S = 1_000_000_000


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that were listed and not recalled."""
    asked: list[str] = []
    scandir = os.scandir

    def watched(path: bytes) -> object:
        asked.append(os.path.basename(os.fsdecode(path)))
        return scandir(path)

    monkeypatch.setattr(folder_index.os, "scandir", watched)
    return asked


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree that is remembered all the same, in a cache of its own."""
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "FEWEST_NAMES", 1)
    root = tmp_path / "images"
    touch(root, "a/1.png", "a/2.PNG", "b/deep/er/3.jpeg", "b/4.png", "b/notes.txt", "c/.5.png")
    (root / "c").mkdir(exist_ok=True)
    return root


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a day go by, so that all folders have been at rest for long."""

    def wait() -> None:
        now_ns = time.time_ns() + 86_400 * 10**9
        monkeypatch.setattr(folder_index.time, "time_ns", lambda: now_ns)

    return wait


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names_of(root: Path, folders: tuple[str, ...] = FOLDERS) -> list[list[bytes]]:
    return [names.tolist() for names in list_names(root, folders, SUFFIXES)]


def index_of(tree: Path) -> Path:
    (path,) = (tree.parent / "cache" / "folders").iterdir()
    return path


NAMES = [[b"a/1.png", b"a/2.PNG"], [b"b/4.png", b"b/deep/er/3.jpeg"], []]


def test_the_second_time_no_folder_is_listed(
    tree: Path, listed: list[str], settled: Callable[[], None]
) -> None:
    settled()
    assert names_of(tree) == NAMES
    assert sorted(listed) == ["a", "b", "c", "deep", "er"]
    listed.clear()
    before = index_of(tree).stat().st_mtime_ns
    assert names_of(tree) == NAMES
    assert listed == []
    assert index_of(tree).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: touch(root, "b/deep/er/9.png"), ["b", "deep", "er"]),
        (lambda root: touch(root, "b/new/9.png"), ["b", "deep", "er", "new"]),
        (lambda root: (root / "a" / "1.png").unlink(), ["a"]),
        (lambda root: (root / "a" / "1.png").rename(root / "a" / "0.png"), ["a"]),
    ],
)
def test_what_has_changed_is_listed_again_and_nothing_else(
    tree: Path,
    listed: list[str],
    settled: Callable[[], None],
    change: Callable[[Path], None],
    expected: list[str],
) -> None:
    settled()
    names_of(tree)
    listed.clear()
    change(tree)
    recalled = names_of(tree)
    assert sorted(listed) == expected
    listed.clear()
    assert names_of(tree) == recalled
    assert listed == []
    index_of(tree).unlink()
    assert names_of(tree) == recalled != NAMES


def test_a_change_that_is_hidden_by_an_old_time_is_seen(
    tree: Path, settled: Callable[[], None]
) -> None:
    os.utime(tree / "a", (LONG_AGO_S, LONG_AGO_S))
    settled()
    names_of(tree)
    touch(tree, "a/9.png")
    os.utime(tree / "a", (LONG_AGO_S, LONG_AGO_S))
    assert b"a/9.png" in names_of(tree)[0]


def test_a_folder_that_changed_a_moment_ago_is_not_remembered(
    tree: Path, listed: list[str], settled: Callable[[], None]
) -> None:
    names_of(tree)
    listed.clear()
    assert names_of(tree) == NAMES
    assert sorted(listed) == ["a", "b", "c", "deep", "er"]
    settled()
    names_of(tree)
    listed.clear()
    names_of(tree)
    assert listed == []


def test_folders_come_and_go(tree: Path, settled: Callable[[], None]) -> None:
    settled()
    names_of(tree)
    assert names_of(tree, ("b",)) == NAMES[1:2]
    touch(tree, "d/1.png")
    assert names_of(tree, ("a", "d")) == [NAMES[0], [b"d/1.png"]]
    assert names_of(tree) == NAMES


def test_other_suffixes_have_an_index_of_their_own(tree: Path, settled: Callable[[], None]) -> None:
    settled()
    names_of(tree)
    assert list_names(tree, ("b",), (".txt",))[0].tolist() == [b"b/notes.txt"]
    assert names_of(tree) == NAMES


def test_a_damaged_index_is_as_good_as_none(
    tree: Path, listed: list[str], settled: Callable[[], None]
) -> None:
    settled()
    names_of(tree)
    path = index_of(tree)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [b"", b"no index", whole[:-30], whole[: len(whole) // 2], whole[50:]]
    for place in random.integers(0, len(whole), 100).tolist():
        byte = (whole[place] ^ (1 << int(random.integers(8)))).to_bytes()
        damaged.append(whole[:place] + byte + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert names_of(tree) == NAMES
    path.write_bytes(whole[:-30])
    names_of(tree)
    listed.clear()
    assert names_of(tree) == NAMES
    assert listed == []


def test_nothing_is_unpickled(tree: Path, settled: Callable[[], None]) -> None:
    settled()
    names_of(tree)
    path = index_of(tree)
    with np.load(path, allow_pickle=False) as stored:
        parts = dict(stored)
    np.savez(path, **parts | {"names": np.array([print, 1, 2, 3], dtype=object)})
    assert names_of(tree) == NAMES


def test_small_trees_and_an_empty_variable_leave_no_file(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "FEWEST_NAMES", 5)
    assert names_of(tree) == NAMES
    monkeypatch.setattr(folder_index, "FEWEST_NAMES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree.parent / "cache"))
    monkeypatch.setenv("VARLIT_CACHE", "")
    assert names_of(tree) == NAMES
    assert not (tree.parent / "cache").exists()
    monkeypatch.delenv("VARLIT_CACHE")
    names_of(tree)
    assert len(list((tree.parent / "cache" / "varlit" / "folders").iterdir())) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.parent / "file").write_bytes(b"")
    monkeypatch.setenv("VARLIT_CACHE", str(tree.parent / "file"))
    assert names_of(tree) == NAMES
    (tree.parent / "cache" / "folders").mkdir(parents=True)
    monkeypatch.setenv("VARLIT_CACHE", str(tree.parent / "cache"))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert names_of(tree) == NAMES
    assert list((tree.parent / "cache" / "folders").iterdir()) == []


def test_one_long_name_is_refused_where_it_would_fill_the_memory(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tree, f"a/{'x' * 200}.png")
    assert len(names_of(tree)[0]) == 3
    monkeypatch.setattr(folder_index, "MAX_PADDED_BYTES", 800)
    with pytest.raises(UserError, match=r"has 206 bytes, to which all 5 are padded.*'a/xxx"):
        names_of(tree)
    touch(tree, *(f"a/{i}{'x' * 200}.png" for i in range(5)))  # long, but for what they say
    assert len(names_of(tree)[0]) == 8


def test_a_long_listing_says_how_far_it_is(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names_of(tree)
    assert capsys.readouterr().err == ""
    moments_s = itertools.count(step=60)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments_s))
    names_of(tree)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"listing the class folders of '{tree}': 3 of 3 (100%), 0 s left"


def test_a_folder_that_cannot_be_listed_is_named(tree: Path) -> None:
    with pytest.raises(UserError, match=r"cannot list '.*/gone': No such file"):
        names_of(tree, ("a", "gone"))


@pytest.mark.slow
def test_many_files_are_recalled_as_they_were_listed(
    tmp_path: Path, listed: list[str], settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cache"))
    root, folders = tmp_path / "images", tuple(f"n{i:08d}" for i in range(100))
    touch(root, *(f"{folder}/{folder}_{i}.jpeg" for folder in folders for i in range(200)))
    settled()
    first = list_names(root, folders, SUFFIXES)
    assert len(listed) == 100
    second = list_names(root, folders, SUFFIXES)
    assert len(listed) == 100
    assert sum(map(len, first)) == 20_000
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # One array for all, as wide as the longest name.
    assert len({names.base is None for names in second}) == 1
    assert second[0].dtype == np.dtype("S28")
