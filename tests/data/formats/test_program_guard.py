import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from varlit.data.formats import tar_stream
from varlit.data.formats.program_guard import ProgramGuard

TWO = ["/bin/sh", "-c", "sleep 600 & sleep 601"]
LIMIT_S = 10


def living(group: int) -> list[str]:
    """What lives in a process group, by name."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                _, name, rest = place.joinpath("stat").read_text().replace(")", "(").split("(")
            except OSError:
                continue
            state, _, number = rest.split()[:3]
            if int(number) == group and state != "Z":
                found.append(name)
    return sorted(found)


def comes(group: int, names: list[str]) -> bool:
    end_s = time.monotonic() + LIMIT_S
    while living(group) != names and time.monotonic() < end_s:
        time.sleep(0.01)
    return living(group) == names


@pytest.fixture
def guard() -> Iterator[ProgramGuard]:
    """With a program in its group that has started two more."""
    guard = ProgramGuard()
    with subprocess.Popen(TWO, process_group=guard.group):
        assert comes(guard.group, ["sh", "sh", "sleep", "sleep"])
        yield guard
        if living(guard.group):
            os.killpg(guard.group, signal.SIGKILL)


def test_the_end_takes_all_that_a_program_has_started(guard: ProgramGuard) -> None:
    guard.end()
    assert comes(guard.group, [])


def test_a_process_forked_meanwhile_neither_ends_it_nor_keeps_it(guard: ProgramGuard) -> None:
    child = os.fork()
    if child == 0:
        guard.end()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    holder = os.fork()
    if holder == 0:
        time.sleep(LIMIT_S)
        os._exit(0)
    try:
        time.sleep(0.2)
        assert len(living(guard.group)) == 4
        guard.end()
        assert os.waitpid(holder, os.WNOHANG) == (0, 0), "it is not waited for"
        assert comes(guard.group, [])
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def test_a_stream_that_is_left_early_leaves_nothing() -> None:
    with tar_stream._opened("pipe:echo x; sleep 600 & sleep 601") as stream:
        assert stream.stream.readline() == b"x\n"
        group = os.getpgid(stream.proc.pid)
        assert group != os.getpgid(0), "Ctrl-C is for whoever reads"
    assert comes(group, [])


def test_a_program_that_cannot_be_started_leaves_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []

    def missing(self: ProgramGuard) -> None:
        begin(self)
        groups.append(self.group)

    begin = ProgramGuard.__init__
    monkeypatch.setattr(ProgramGuard, "__init__", missing)
    monkeypatch.setattr(tar_stream, "_command", lambda url: ["/nowhere/at/all"])
    with pytest.raises(FileNotFoundError), tar_stream._opened("http://x"):
        pass
    assert comes(groups[0], [])
