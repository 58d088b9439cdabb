"""Checkpoints on disks that are full, read-only, or out of inodes."""

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from varlit.errors import UserError
from varlit.training.checkpoint_files import LAST, SealedFiles, newest_whole, read_checkpoint
from varlit.training.sealing import write_sealed

Limited = Callable[[int], contextlib.AbstractContextManager[None]]
Mount = Callable[[str], Any]


def content(step: int, num_weights: int = 20_000) -> dict[str, Any]:
    """A checkpoint of about 80 kB."""
    weights = {"w": torch.full((num_weights,), float(step))}
    return {"state_dict": weights, "hyper_parameters": {}, "global_step": step}


def step_of(folder: Path) -> int:
    found = newest_whole(folder)
    assert found.path is not None
    assert not found.damaged
    return int(read_checkpoint(found.path)["global_step"])


def save_plainly(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content(1), file)


def test_torch_hides_a_full_disk_and_we_do_not(tmp_path: Path, limited: Limited) -> None:
    with limited(30_000), pytest.raises((RuntimeError, OSError)) as caught:
        save_plainly(tmp_path / "plain")
    assert "too large" not in str(caught.value), "torch has learned to say it: simplify sealing"
    with limited(30_000), pytest.raises(OSError, match="too large") as caught:
        write_sealed(content(1), tmp_path / LAST)
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / LAST).exists()


def test_a_refused_save_is_one_line_and_loses_nothing(tmp_path: Path, limited: Limited) -> None:
    files = SealedFiles(keep_last=2)
    for step in (1, 2):
        files.save_checkpoint(content(step), tmp_path / LAST)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    told = (
        r"cannot write .*last\.ckpt: File too large; .*\(the last one takes 0\.1 MB\).*same command"
    )
    with limited(30_000), pytest.raises(UserError, match=told) as caught:
        files.save_checkpoint(content(3), tmp_path / LAST)
    assert len(str(caught.value).splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    files.save_checkpoint(content(3), tmp_path / LAST)
    assert step_of(tmp_path) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [LAST, "0000003.ckpt", "best.ckpt"])
def test_a_full_disk_keeps_the_checkpoints_before(disk: Mount, name: str) -> None:
    small = disk("size=280k")
    files = SealedFiles(keep_last=2)
    for step in (1, 2):
        files.save_checkpoint(content(step), small.folder / LAST)
    ballast, before = small.fill(leave_bytes=40_000), small.names()
    with pytest.raises(UserError, match=r"No space left on device \(0\.0 MB free\); those saved"):
        files.save_checkpoint(content(3), small.folder / name)
    assert small.names() == before
    assert step_of(small.folder) == 2
    ballast.unlink()
    files.save_checkpoint(content(3), small.folder / name)
    assert read_checkpoint(small.folder / name)["global_step"] == 3


@pytest.mark.slow
def test_no_inode_for_a_checkpoint(disk: Mount) -> None:
    crowded = disk("size=1m,nr_inodes=3")
    files = SealedFiles(keep_last=1)
    files.save_checkpoint(content(1), crowded.folder / LAST)
    (crowded.folder / "another").touch()
    with pytest.raises(UserError, match="no inodes left: remove files"):
        files.save_checkpoint(content(2), crowded.folder / LAST)
    assert step_of(crowded.folder) == 1


@pytest.mark.slow
def test_a_disk_that_turned_read_only_keeps_its_checkpoint(disk: Mount) -> None:
    closed = disk("size=1m")
    files = SealedFiles(keep_last=1)
    files.save_checkpoint(content(1), closed.folder / LAST)
    closed.remount("ro")
    with pytest.raises(UserError, match="Read-only file system; those saved before"):
        files.save_checkpoint(content(2), closed.folder / LAST)
    assert step_of(closed.folder) == 1
