"""Commands whose processes can be counted, also after they have lost their parent."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

MARK = "VARLIT_TEST_ID"
LIMIT_S = 120
"""Far below torch's half hour; a test that fails by it has found a process that waits in vain."""
SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code, its words, and how many processes."""

    code: int
    out: str
    err: str
    num_left: int
    folder: Path

    @property
    def first(self) -> str:
        """The first line of stderr in varlit's own voice."""
        return next((x for x in self.err.splitlines() if x.startswith("varlit")), "")


class Started:
    """A command with all of its processes."""

    def __init__(self, words: list[str], folder: Path, **variables: str) -> None:
        self.mark, self.folder = uuid.uuid4().hex, folder
        self.out, self.err = folder / f"{self.mark}.out", folder / f"{self.mark}.err"
        plain = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
        settings = {MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            # To files: a pipe stays open as long as any orphan lives.
            self.process = subprocess.Popen(
                [sys.executable, *words],
                env=plain | settings | variables,
                stdout=out,
                stderr=err,
                cwd=folder,
            )

    def alive(self) -> dict[int, str]:
        """Return the living processes of this command: number and command line."""
        found = {}
        for place in Path("/proc").iterdir():
            try:
                marked = place.name.isdigit() and self._is_ours(place)
                if marked:
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(place.name)] = words.decode(errors="replace")
            except OSError:
                continue
        return found

    def _is_ours(self, place: Path) -> bool:
        marked = f"{MARK}={self.mark}".encode() in (place / "environ").read_bytes().split(b"\0")
        return marked and ") Z " not in (place / "stat").read_text()

    def kill(self) -> None:
        """Kill all that lives of it."""
        for number in self.alive():
            os.kill(number, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> Ended:
        """Wait for the first process, then for the others, and count those that stay."""
        end_s = time.monotonic() + LIMIT_S
        try:
            self.process.wait(LIMIT_S)
            # torch's loader workers look every five seconds whether their parent is alive.
            while self.alive() and time.monotonic() < end_s:
                time.sleep(0.1)
            left = len(self.alive())
        finally:
            self.kill()
        words = self.out.read_text(), self.err.read_text(errors="replace")
        return Ended(self.process.returncode, *words, left, self.folder)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory):
    """Start a command in a folder of its own, with a port to meet at."""

    places = tmp_path_factory.mktemp("commands")  # pytest's own are not made for several threads

    def begin(*words: object, folder: Path | None = None, **variables: str) -> Started:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} | variables
        if folder is None:
            folder = places / uuid.uuid4().hex
            folder.mkdir()
        return Started([str(word) for word in words], folder, **place)

    return begin
