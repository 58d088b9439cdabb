import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from varlit.data.workers import run_jobs
from varlit.errors import UserError


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(workers: int) -> None:
    done = dict(run_jobs(abs, [-3, 4, -5], workers))
    assert done == {-3: 3, 4: 4, -5: 5}
    assert list(run_jobs(abs, [], workers)) == []


def test_an_error_of_a_worker_arrives() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(run_jobs(int, ["1", "x"], 2))


def test_a_worker_that_is_killed_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"a worker process was killed.*fewer --workers"):
        list(run_jobs(os._exit, [9, 9], 2))


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from varlit.data.workers import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    list(run_jobs(time.sleep, [60, 60], 2))\n"
    )
    (tmp_path / "run.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py"])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    end_s = time.monotonic() + 30
    while sum(map(is_ready, children.read_text().split())) < 2 and time.monotonic() < end_s:
        time.sleep(0.02)
    workers = [pid for pid in children.read_text().split() if is_ready(pid)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(workers) == 2
    end_s = time.monotonic() + 30
    while any(map(is_ready, workers)) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not any(map(is_ready, workers))


def is_ready(pid: str) -> bool:
    """Whether a worker has its second thread, which watches the parent."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"spawn_main" in words and len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False
