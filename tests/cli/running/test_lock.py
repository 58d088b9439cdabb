"""One training at a time: kept out while the holder lives, free the moment it is gone."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from varlit.cli.running import lock as run_lock
from varlit.cli.running.lock import RunLock
from varlit.errors import UserError


@contextmanager
def holder(folder: Path, more: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A process that holds the lock until it is killed."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            RunLock(folder).take()
            more()
            os.write(done, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_one_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path) as child, pytest.raises(UserError, match=f"process {child} on"):
        RunLock(tmp_path).take()


def test_what_a_killed_process_held_is_free_at_once(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with holder(tmp_path):
        pass
    with RunLock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert not recwarn.list


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_it(tmp_path: Path) -> None:
    worker_ready, worker_done = os.pipe()

    def start_worker() -> None:
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(worker_done, worker.to_bytes(4, "little"))

    with holder(tmp_path, start_worker):
        worker = int.from_bytes(os.read(worker_ready, 4), "little")
    try:
        RunLock(tmp_path).take()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_release_leaves_an_empty_file_and_may_be_repeated(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.take()
    lock.take()
    lock.release()
    lock.release()
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_lock_of_another_machine_is_taken_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 7 on elsewhere, since 2026-01-01T00:00:00+00:00")
    with pytest.warns(UserWarning, match="process 7 on elsewhere"):
        RunLock(tmp_path).take()


def test_without_locks_in_the_file_system_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="no locks"):
        RunLock(tmp_path).take()
