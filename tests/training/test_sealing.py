"""Files that know whether they are whole: real damage is found, and a save is all or nothing."""

import hashlib
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

from varlit.training import sealing
from varlit.training.sealing import flaw, read_seal, write_sealed

CONTENT = {"weight": torch.arange(3000.0).reshape(60, 50), "step": 7, "empty": torch.zeros(0)}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_sealed(CONTENT, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file of before there were seals."""
    torch.save(CONTENT, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def is_content(path: Path) -> bool:
    found = torch.load(path, weights_only=True)
    same = all(torch.equal(found[name], CONTENT[name]) for name in ("weight", "empty"))
    return same and found["step"] == 7


def is_refused(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except RuntimeError:
        return True
    return False


def flip(path: Path, place: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0x40
    path.write_bytes(damaged)


def test_a_sealed_file_is_a_file_of_torch_and_a_zip_file(sealed: Path) -> None:
    assert is_content(sealed)
    assert torch.load(sealed, weights_only=True, mmap=True)["step"] == 7
    with zipfile.ZipFile(sealed) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"varlit1 ")
    assert flaw(sealed) == ""


def test_the_sum_is_that_of_the_file_as_torch_writes_it(sealed: Path) -> None:
    seal = read_seal(sealed)
    assert seal is not None
    start = f"varlit1 {seal.saved_ns:019d} ".encode()
    body = sealed.read_bytes()[: -len(start) - 64 - 2] + b"\0\0"
    assert seal.sha256 == hashlib.sha256(body + start).hexdigest()


def test_a_copy_and_a_rename_keep_the_seal(sealed: Path) -> None:
    copy = sealed.with_name("copy")
    copy.write_bytes(sealed.read_bytes())
    os.replace(sealed, sealed.with_name("moved"))
    assert read_seal(copy) == read_seal(sealed.with_name("moved"))
    assert flaw(copy) == ""


@pytest.mark.parametrize("which", ["sealed", "plain"])
def test_a_cut_is_found_wherever_it_is(which: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    whole, draw = path.read_bytes(), random.Random(0)
    lengths = [0, 1, 3, len(whole) - 1, len(whole) - 2, len(whole) - 22, len(whole) - 94]
    for length in [*lengths, *(draw.randrange(len(whole)) for _ in range(20))]:
        path.write_bytes(whole[:length])
        assert flaw(path) or is_content(path), length
        # A cut in the seal leaves the zip file whole, and its own sums say so.
        assert flaw(path) or (which == "sealed" and length >= len(whole) - 92), length


@pytest.mark.parametrize("which", ["sealed", "plain"])
def test_a_flipped_bit_is_found_or_harms_nothing(
    which: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    whole, draw = path.read_bytes(), random.Random(1)
    with zipfile.ZipFile(path) as file:
        directory = range(file.start_dir, len(whole))
    tensors = whole.index(CONTENT["weight"].numpy().tobytes())
    places = [*draw.sample(directory, 60), *draw.sample(range(len(whole)), 60)]
    places += [tensors + draw.randrange(12000) for _ in range(20)]
    found = 0
    for place in places:
        path.write_bytes(whole)
        flip(path, place)
        reason = flaw(path)
        found += bool(reason)
        assert reason or is_refused(path) or is_content(path), place
        if which == "sealed" and place < len(whole) - 92:
            assert reason, "the sum covers every byte before the seal"
        if tensors <= place < tensors + 12000:
            assert reason, "of both kinds"
    assert found > len(places) // 2


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        fsync(number)

    def note_replace(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(sealing.os, "fsync", note_fsync)
    monkeypatch.setattr(sealing.os, "replace", note_replace)
    write_sealed(CONTENT, tmp_path / "a.ckpt", lambda: done.append("room"))
    assert done == ["file", "room", "rename", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_file_before_and_no_other(
    sealed: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sealed.read_bytes()
    monkeypatch.setattr(sealing.os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_sealed({"other": 1}, sealed)
    assert sealed.read_bytes() == before
    assert list(sealed.parent.iterdir()) == [sealed]


def test_a_full_disk_is_told_as_such_by_torch(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    for size in (10, 10_000_000):
        with full.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            torch.save({"a": torch.zeros(size)}, sealing._Summed(file))  # type: ignore[arg-type]
