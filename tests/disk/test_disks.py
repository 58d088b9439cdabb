"""Files on a disk that refuses them: nothing half-written, a line that says what is free."""

import contextlib
import errno
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from varlit.disks import (
    UnwritableError,
    append_line,
    free_room,
    may_be_lost,
    must_be_written,
    whole_file,
)
from varlit.errors import UserError

Limited = Callable[[int], contextlib.AbstractContextManager[None]]
Mount = Callable[[str], Any]


def test_a_refused_file_leaves_the_one_before_and_no_other(
    tmp_path: Path, limited: Limited
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with (
        limited(1000),
        pytest.raises(OSError, match="too large") as caught,
        whole_file(path) as half,
    ):
        half.write_bytes(bytes(2000))
    assert caught.value.filename == str(path), "what could not be written has a name"
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_file_takes_its_name_in_a_new_folder(tmp_path: Path) -> None:
    with whole_file(tmp_path / "new" / "a.json") as half:
        half.write_text("whole")
        assert not (tmp_path / "new" / "a.json").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert (tmp_path / "new" / "a.json").read_text() == "whole"


def test_an_error_without_a_number_keeps_its_text(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="2 GB are needed"), whole_file(tmp_path / "a"):
        raise OSError("2 GB are needed")
    with (
        pytest.raises(UserError, match=r"cannot write .*a: 2 GB are needed; mend it"),
        must_be_written(tmp_path / "a", "mend it"),
    ):
        raise OSError("2 GB are needed")


def test_half_a_line_is_taken_back(tmp_path: Path, limited: Limited) -> None:
    path = tmp_path / "lines"
    append_line(path, "first\n")
    with limited(100), pytest.raises(OSError, match="too large"):
        append_line(path, "x" * 200 + "\n")
    append_line(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def test_what_may_be_lost_warns_once_a_kind_and_comes_back(tmp_path: Path) -> None:
    def refuse(*kinds: str) -> None:
        for what in kinds:
            with may_be_lost(what, tmp_path / what):
                raise OSError(errno.EROFS, "Read-only file system")

    with pytest.warns(UserWarning, match=r"Read-only file system; going on without maps") as told:
        refuse("maps", "maps", "lines")
    assert len(told) == 2
    with may_be_lost("maps", tmp_path / "maps"):
        (tmp_path / "maps").touch()
    assert (tmp_path / "maps").exists()


def test_what_may_be_lost_bears_a_refusal_but_no_other_error(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no room here"), may_be_lost("maps", tmp_path / "a"):
        raise UnwritableError(tmp_path / "b", "no room here", "mend it")
    with pytest.raises(UserError, match="another mistake"), may_be_lost("maps", tmp_path / "a"):
        raise UserError("another mistake")


@pytest.mark.slow
def test_a_full_disk_is_told_with_what_is_free(disk: Mount) -> None:
    small = disk("size=256k")
    with (
        pytest.raises(UserError, match=r"No space left on device \(0\.[0-3] MB free\); mend it"),
        must_be_written(small.folder / "a", "mend it"),
        whole_file(small.folder / "a") as half,
    ):
        half.write_bytes(bytes(2**20))
    assert small.names() == []


@pytest.mark.slow
def test_a_disk_without_inodes_is_told_as_such(disk: Mount) -> None:
    crowded = disk("size=1m,nr_inodes=3")
    (crowded.folder / "first").touch()
    (crowded.folder / "second").touch()
    assert free_room(crowded.folder / "x").startswith("no inodes left")
    with (
        pytest.raises(UserError, match=r"No space left on device \(no inodes left: remove files"),
        must_be_written(crowded.folder / "third", "mend it"),
        whole_file(crowded.folder / "third") as half,
    ):
        half.touch()


@pytest.mark.slow
def test_a_read_only_disk_is_told_as_such(disk: Mount) -> None:
    closed = disk("size=1m")
    (closed.folder / "a").write_text("before")
    closed.remount("ro")
    with (
        pytest.raises(UserError, match=r"Read-only file system; mend it"),
        must_be_written(closed.folder / "a", "mend it"),
        whole_file(closed.folder / "a") as half,
    ):
        half.touch()
    with warnings.catch_warnings(record=True) as told, may_be_lost("maps", closed.folder / "a"):
        warnings.simplefilter("always")
        append_line(closed.folder / "a", "more")
    assert "Read-only" in str(told[0].message)
    assert (closed.folder / "a").read_text() == "before"


def test_a_refusal_can_come_from_another_process() -> None:
    error = UnwritableError(Path("a"), "no room", "mend it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "cannot write a: no room; mend it"
