"""Which checkpoints are kept, which is found, and that no death of a process loses them all."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from varlit.training import checkpoint_files, sealing
from varlit.training.checkpoint_files import (
    Newest,
    SealedFiles,
    candidates,
    newest_whole,
    remove_leftovers,
    set_aside,
)
from varlit.training.shard_files import write_parts


def content(step: int) -> dict[str, Any]:
    return {
        "global_step": step,
        "hyper_parameters": {},
        "state_dict": {"weight": torch.full((40, 30), float(step))},
    }


def save(folder: Path, *steps: int, keep_last: int = 2, name: str = "last.ckpt") -> None:
    files = SealedFiles(keep_last)
    for step in steps:
        files.save_checkpoint(content(step), folder / name)


def step_of(path: Path) -> int:
    found = torch.load(path, weights_only=True)
    assert torch.equal(
        found["state_dict"]["weight"], content(found["global_step"])["state_dict"]["weight"]
    )
    return int(found["global_step"])


def steps_in(folder: Path) -> dict[str, int]:
    return {path.name: step_of(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("keep_last", "kept"),
    [
        (1, {"last.ckpt": 4}),
        (2, {"last.ckpt": 4, "last-previous.ckpt": 3}),
        (3, {"last.ckpt": 4, "last-previous.ckpt": 3, "last-previous-2.ckpt": 2}),
    ],
)
def test_the_last_ones_are_kept(tmp_path: Path, keep_last: int, kept: dict[str, int]) -> None:
    save(tmp_path, 1, 2, 3, 4, keep_last=keep_last)
    assert steps_in(tmp_path) == kept


def test_fewer_are_kept_once_that_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep_last=3)
    save(tmp_path, 4, keep_last=1)
    assert steps_in(tmp_path) == {"last.ckpt": 4}


def test_a_step_saved_twice_is_not_its_own_predecessor(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 2)
    assert steps_in(tmp_path) == {"last.ckpt": 2, "last-previous.ckpt": 1}


def test_snapshots_move_nothing_on(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, name="0000001.ckpt")
    save(tmp_path, 1, name="0000001.ckpt")
    assert steps_in(tmp_path) == {"last.ckpt": 1, "0000001.ckpt": 1}


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size - 94)])


def flip(path: Path, draw: random.Random) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[draw.randrange(len(damaged) - 94)] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def replace_by_a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def replace_by_other_data(path: Path, draw: random.Random) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def replace_by_code(path: Path, draw: random.Random) -> None:
    torch.save({"hyper_parameters": {}, "run": shutil.rmtree}, path)


@pytest.mark.parametrize(
    ("damage", "times", "reason"),
    [
        (cut, 20, ""),
        (flip, 40, "sha256"),
        (empty, 1, "is empty"),
        (remove, 1, "is missing"),
        (replace_by_a_folder, 1, "is a folder"),
        (replace_by_other_data, 1, "no checkpoint of varlit"),
        (replace_by_code, 1, "no checkpoint of varlit"),
    ],
)
def test_the_one_before_is_found_when_the_last_is_damaged(
    tmp_path: Path, damage: Callable[..., None], times: int, reason: str
) -> None:
    draw = random.Random(0)
    for number in range(times):
        folder = tmp_path / str(number)
        save(folder, 1, 2)
        damage(folder / "last.ckpt", draw)
        found = newest_whole(folder)
        assert found.path == folder / "last-previous.ckpt"
        assert [each.path.name for each in found.damaged] == ["last.ckpt"]
        assert reason in found.damaged[0].reason
        assert step_of(found.path) == 1


def test_what_was_written_last_is_next_whatever_its_name(tmp_path: Path) -> None:
    for step, name in (
        (1, "0000001.ckpt"),
        (2, "best.ckpt"),
        (9, "0000009.ckpt"),
        (5, "last.ckpt"),
    ):
        save(tmp_path, step, name=name)
    save(tmp_path, 6)
    order = ["last.ckpt", "last-previous.ckpt", "0000009.ckpt", "best.ckpt", "0000001.ckpt"]
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))  # as after a copy: the files themselves know when they were written
    assert [path.name for path in candidates(tmp_path)] == order
    for number, name in enumerate(order):
        assert newest_whole(tmp_path).path == tmp_path / name
        assert len(newest_whole(tmp_path).damaged) == number
        empty(tmp_path / name, random.Random())


def test_files_of_before_there_were_seals_are_found(tmp_path: Path) -> None:
    torch.save(content(3), tmp_path / "last.ckpt")
    assert newest_whole(tmp_path) == Newest(tmp_path / "last.ckpt", [])


def test_an_empty_folder_and_none_hold_nothing(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == Newest(None, [])
    assert newest_whole(tmp_path / "none") == Newest(None, [])


def test_what_is_set_aside_is_never_overwritten_and_never_found(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        assert set_aside(tmp_path / "last.ckpt") is not None
    assert steps_in(tmp_path) == {"last.ckpt.damaged": 1, "last.ckpt.damaged-2": 2}
    assert newest_whole(tmp_path).path is None
    assert set_aside(tmp_path / "last.ckpt") is None


def in_a_process(work: Callable[[], object]) -> int:
    """Run in a forked process; returns its exit code, 0 if it came to the end."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(number: int) -> None:
    """Have this process killed at its nth act on files, by SIGKILL as the kernel would."""
    left = [number]

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **kwargs)

        return acting

    sealing._Summed.write = dying(sealing._Summed.write)  # type: ignore[method-assign]
    for module in (os, checkpoint_files):
        for name in ("fsync", "replace", "sync_folder"):
            if hasattr(module, name):
                setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize("keep_last", [1, 2, 3])
@pytest.mark.slow
def test_a_process_killed_at_any_act_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, keep_last: int
) -> None:
    number, code = 0, -signal.SIGKILL
    while code != 0:
        number += 1
        folder = tmp_path / str(number)
        save(folder, 1, 2, 3, keep_last=keep_last)

        def work(number: int = number, folder: Path = folder) -> None:
            die_at(number)
            save(folder, 4, keep_last=keep_last)

        code = in_a_process(work)
        assert code in (0, -signal.SIGKILL)
        found = newest_whole(folder)
        assert found.path is not None, number
        assert step_of(found.path) == (3 if code and not _renamed(folder) else 4)
        assert all(each.reason == "it is missing" for each in found.damaged), number
        remove_leftovers(folder)
        assert not list(folder.glob("*.tmp*"))
        save(folder, 5, keep_last=keep_last)  # and the next one goes on with it
        assert newest_whole(folder) == Newest(folder / "last.ckpt", [])
    assert number > 10, "several acts in the middle of writing were among them"


def _renamed(folder: Path) -> bool:
    last = folder / "last.ckpt"
    return last.exists() and step_of(last) == 4


def test_leftovers_of_the_living_stay(tmp_path: Path) -> None:
    parts = tmp_path / "last.parts"
    parts.mkdir()
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    living = os.getppid()
    for folder in (tmp_path, parts):
        for owner in (dead, living, os.getpid()):
            (folder / f"last.ckpt.tmp{owner}").touch()
    assert len(remove_leftovers(tmp_path)) == 4
    left = [path.name for path in tmp_path.rglob("*.tmp*")]
    assert left == [f"last.ckpt.tmp{living}"] * 2


def save_parts(folder: Path, *steps: int) -> None:
    files = SealedFiles()
    for step in steps:
        write_parts(content(step), folder / "last.ckpt", 0, 1, lambda: None, files.save_checkpoint)


def test_in_parts_the_one_before_keeps_its_parts(tmp_path: Path) -> None:
    save_parts(tmp_path, 1, 2, 3)
    names = sorted(path.name for path in (tmp_path / "last.parts").iterdir())
    assert names == ["0000002-00000-of-00001.pt", "0000003-00000-of-00001.pt"]
    assert newest_whole(tmp_path) == Newest(tmp_path / "last.ckpt", [])
    (tmp_path / "last.parts" / names[1]).write_bytes(b"PK")
    found = newest_whole(tmp_path)
    assert found.path == tmp_path / "last-previous.ckpt"
    assert names[1] in found.damaged[0].reason


def test_a_part_of_another_save_of_the_same_step_is_known(tmp_path: Path) -> None:
    save_parts(tmp_path, 1, 2)
    sealing.write_sealed({}, tmp_path / "last.parts" / "0000002-00000-of-00001.pt")
    found = newest_whole(tmp_path)
    assert found.path == tmp_path / "last-previous.ckpt"
    assert "another save" in found.damaged[0].reason
