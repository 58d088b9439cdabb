"""A process that has done its work leaves with its code, whatever its threads still do."""

import subprocess
import sys
import tomllib
from pathlib import Path

PROCESS = """
import atexit, sys, threading, time
from varlit.cli import main

def work():
    import torch
    matrix = torch.zeros(512, 512)
    while True:
        matrix @ matrix

def run():
    import torch
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    atexit.register(print, "other handlers")
    print("done")
    return 3

main.main = run
sys.exit(main.command())
"""


def test_a_thread_that_is_inside_of_torch_does_not_abort_the_end() -> None:
    words = [sys.executable, "-c", PROCESS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == ["done", "other handlers"]


def test_the_command_is_installed_by_this_end() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["varlit"] == "varlit.cli.main:command"
