"""Trying changed files: in a process with little memory and little time, which is watched."""

import faulthandler
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import REFUSALS, Kind

LIMIT_S = 20
"""For one file: a thousand times what it takes, also on a machine that does other things."""
LIMIT_BYTES = 2**31
"""Above what the process holds before the first file."""
WATCHED = frozenset(("os.system", "os.exec", "os.fork", "subprocess.Popen", "socket.connect"))
CHANGING = frozenset(("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"))


class TooLong(BaseException):
    """A reader that has not come back; no reader can take it for damage."""


class Escaped(BaseException):
    """A reader that started a program or wrote elsewhere."""


@dataclass(frozen=True)
class Outcome:
    """What came of one file: "refused", "read", or "wrong" and why."""

    verdict: str
    reason: str = ""


class Folder:
    """A folder with a sound file of a kind, changed for each trial and put back after it."""

    def __init__(self, kind: Kind, root: Path) -> None:
        self.kind, self.root = kind, root
        root.mkdir(parents=True, exist_ok=True)
        kind.make(root)
        found = [p for pattern in kind.files for p in sorted(root.rglob(pattern)) if p.is_file()]
        self.files = list(dict.fromkeys(found))
        assert self.files, f"{kind.name}: no file is called {list(kind.files)}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.original = kind.read(root)
        complaint = kind.judge(self.original, self.original)
        assert not complaint, f"{kind.name}: the sound one is judged wrong: {complaint}"
        self.content = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self.times = {path: path.stat() for path in self.content}

    def change(self, number: int, seed: int) -> tuple[Path, bytes]:
        """The file that a trial is about and its content, by the number of the trial alone."""
        draw = random.Random(f"{seed} {self.kind.name} {number}")
        path = draw.choice(self.files)
        mutations = next(m for pattern, m in self.kind.files.items() if path.match(pattern))
        return path, draw.choice(mutations)(self.content[path], draw)

    def attempt(self, path: Path, content: bytes) -> Outcome:
        """Read the folder with another content in one file, and put everything back."""
        if content == self.content[path]:
            return Outcome("read")
        path.write_bytes(content)
        try:
            return self._judged()
        finally:
            self._restore()

    def _judged(self) -> Outcome:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = self.kind.read(self.root)
        except REFUSALS as error:
            message = str(error)
            if not message or "\0" in message or len(message.splitlines()) > 3:
                return Outcome("wrong", f"a refusal that nobody can read: {message[:300]!r}")
            return Outcome("refused", message)
        except Exception:
            return Outcome("wrong", traceback.format_exc(limit=-4))
        complaint = self.kind.judge(got, self.original)
        return Outcome("wrong", complaint) if complaint else Outcome("read")

    def _restore(self) -> None:
        for path in [p for p in self.root.rglob("*") if p.is_file() and p not in self.content]:
            path.unlink()
        for path, before in self.times.items():
            if not path.is_file() or path.stat().st_mtime_ns != before.st_mtime_ns:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.content[path])
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def run(
    folder: Folder, numbers: Iterable[int], seed: int, tell: Callable[[int, Outcome], None]
) -> None:
    """Try files one after another, each within its time."""
    signal.signal(signal.SIGALRM, _too_long)
    for number in numbers:
        path, content = folder.change(number, seed)
        faulthandler.dump_traceback_later(LIMIT_S + 10, exit=True, file=sys.__stderr__)
        signal.alarm(LIMIT_S)
        try:
            outcome = folder.attempt(path, content)
        except TooLong:
            outcome = Outcome("wrong", f"took more than {LIMIT_S} s")
        except Escaped as error:
            outcome = Outcome("wrong", str(error))
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        tell(number, outcome)


def confine(root: Path) -> None:
    """Let this process have little memory, and no file but below `root` to write."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    inside = (str(root.resolve()), os.devnull)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in WATCHED:
            raise Escaped(f"{event} {args!r}"[:300])
        if event == "open":
            path, _, flags = args
            is_written = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            changed = [path] if is_written and isinstance(path, str | bytes) else []
        elif event in CHANGING:
            changed = [arg for arg in args if isinstance(arg, str | bytes)]
        else:
            return
        for name in changed:
            if not os.path.realpath(os.fsdecode(name)).startswith(inside):
                raise Escaped(f"{event} {name!r}")

    sys.addaudithook(watch)


def _too_long(*_: object) -> None:
    raise TooLong
