import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from varlit.cli.running import processes
from varlit.cli.running.children import shell_code, started_by, told_ending
from varlit.cli.running.processes import SharedFate


@pytest.fixture
def bystander():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


@pytest.fixture
def failed():
    child = subprocess.Popen(["false"])
    child.wait()
    return child


def test_lightnings_observer_no_longer_kills_without_a_word(bystander, failed):
    launcher = SimpleNamespace(procs=[failed])
    observer = _ChildProcessObserver(bystander.pid, launcher.procs, sleep_period=1)
    observer.start()
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    assert started_by(trainer) == [failed]
    observer.join()
    assert bystander.poll() is None
    assert launcher.procs == [failed], "Ctrl-C goes on to find them there"


def test_a_trainer_without_processes_has_started_none():
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None))
    assert started_by(trainer) == []


@pytest.mark.parametrize("was_told", [True, False])
def test_children_killed_because_the_user_stops_the_run_are_not_missed(
    monkeypatch, failed, was_told
):
    monkeypatch.setattr(processes, "CHILD_GRACE_S", -1.0)
    fate = SharedFate(2, 0, Path(), lambda: [failed], lambda: was_told)
    assert (fate._missed() is None) == was_told


def test_endings_are_told_and_numbered_as_a_shell_does():
    assert told_ending(2) == "it ended with code 2, see above"
    assert told_ending(-signal.SIGSEGV) == "it was killed by SIGSEGV"
    assert (shell_code(2), shell_code(-signal.SIGKILL)) == (2, 137)


def test_a_run_of_one_process_is_left_alone(tmp_path):
    with pytest.raises(ZeroDivisionError), SharedFate(1, 0, tmp_path, list):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
