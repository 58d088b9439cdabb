"""A process that has done its work leaves with its code, whatever a library's threads do."""

import subprocess
import sys

import pytest

PROCESS = """
import atexit, sys, torch.distributed as dist
from varlit.cli import main

class TakenDown:
    def __del__(self):
        print("taken down")

def run():
    if sys.argv[1] == "connected":
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    atexit.register(print, "other handlers")
    print("done")
    return 3

kept_to_the_end = TakenDown()
main.main = run
sys.exit(main.command())
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("alone", ["done", "other handlers", "taken down"]),
        ("connected", ["done", "other handlers"]),
    ],
)
def test_the_interpreter_is_not_taken_down_under_gloos_threads(how: str, said: list[str]) -> None:
    words = [sys.executable, "-c", PROCESS, how]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n") == [*said, ""], done.stderr
    assert done.returncode == 3
