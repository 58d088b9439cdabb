"""Reading one tar shard as a stream, through the webdataset library, past every hiccup.

A connection that breaks is opened again after a while, and what had arrived is passed over. What
never arrives is handed out as lost, so that every row keeps its number.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from varlit.data.bad_files import BadFile
from varlit.data.formats.folders import IMAGE_SUFFIXES
from varlit.data.formats.program_guard import ProgramGuard
from varlit.data.formats.tar_index import MAX_KEY_BYTES, MAX_LABEL_BYTES, parse_label
from varlit.errors import UserError

WAITS_S = (1, 5, 20, 60)
"""Waits before a shard is opened again; a server that restarts is back by then."""
BUFFER_BYTES = 1 << 20
MAX_END_S = 2

# What is raised by a connection that breaks, and by a tar that is damaged.
_FAULTS = (OSError, tarfile.TarError, ValueError, EOFError, zlib.error)

# A process that is forked while a thread starts a program keeps the ends of its pipes, and the
# thread waits for an end that does not come before the process ends: a worker, which lives on.
_starting_a_program = threading.Lock()
os.register_at_fork(
    before=_starting_a_program.acquire,
    after_in_parent=_starting_a_program.release,
    after_in_child=_starting_a_program.release,
)

# With the flags of webdataset's own gopen, which starts programs in no group of their own.
_CURL = ("curl", "--connect-timeout", "30", "--retry", "30", "--retry-delay", "2", "-f", "-s", "-L")
_PROGRAMS: dict[str, tuple[str, ...]] = {
    "http": (*_CURL, "{url}"),
    "https": (*_CURL, "{url}"),
    "s3": ("aws", "s3", "cp", "{url}", "-"),
    "gs": ("gsutil", "cat", "{url}"),
}
# No program of ours is in the terminal's foreground: one that asks there fails and does not stop.
_DEAF_TO_TERMINAL = "trap '' TTIN TTOU; "
# A shell whose program was cut off while it wrote, and a curl that was.
_CUT_OFF = [141, 23]


@dataclass(frozen=True)
class Sample:
    """An image of a stream.

    Attributes:
        row: Its number in the split.
        encoded: The bytes of its file; None if it is lost.
        label: 0 if it is lost.
        where: URL of the shard and name in it.
        fault: Why it is lost.
    """

    row: int
    encoded: bytes | None
    label: int
    where: str
    fault: BadFile | None = None


@dataclass(frozen=True)
class StreamedTar:
    """One shard.

    Attributes:
        url: Where it is.
        first: The row of its first image.
        count: Images in it that have a label.
        num_classes: Labels are below this.
    """

    url: str
    first: int
    count: int
    num_classes: int

    def samples(self, stop: int) -> Iterator[Sample]:
        """Yield every row from the first to `stop` - 1, in order; those that do not come as lost.

        Args:
            stop: A row of this shard, or the one after its last.
        """
        row, reason = self.first, ""
        for wait_s in (0, *WAITS_S):
            time.sleep(wait_s)
            try:
                for labelled in islice(_labelled(self.url), row - self.first, stop - self.first):
                    yield self._sample(row, labelled)
                    row += 1
                reason = f"it ends after {row - self.first} of {self.count} images"
            except _FAULTS as error:
                reason = f"{_reason(error)}, after {row - self.first} of {self.count} images"
            if row >= stop:
                return
        fault = BadFile(self.url, reason, self.first + self.count - row)
        for lost in range(row, stop):
            yield Sample(lost, None, 0, self.url, fault)

    def _sample(self, row: int, labelled: _Labelled) -> Sample:
        where = f"{self.url}/{labelled.name}"
        if labelled.label < self.num_classes:
            return Sample(row, labelled.encoded, labelled.label, where)
        fault = BadFile(where, f"label {labelled.label}, but {self.num_classes} classes")
        return Sample(row, None, 0, where, fault)


def read_text(url: str) -> str:
    """Read a small file, after a second once more if that fails; the first thing to be read.

    Raises:
        OSError: If it cannot be read.
        UserError: If a program or package that this takes is missing.
    """
    try:
        # All of it now: a worker that is forked while a thread imports would wait for ever.
        import webdataset.tariterators  # noqa: F401
    except ImportError as error:
        raise UserError(
            "streamed shards are read with webdataset: `pip install 'varlit[formats]'`."
        ) from error
    for wait_s in (0, WAITS_S[0]):
        time.sleep(wait_s)
        try:
            with _opened(url) as stream:
                content = stream.read()
                _check_status(stream)
                return content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = _reason(error)
    raise OSError(reason)


class _Labelled(NamedTuple):
    name: str
    encoded: bytes
    label: int


def _labelled(url: str) -> Iterator[_Labelled]:
    """Yield the images of a tar that have a label: the same, in order, as `tar_index` finds."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    keys: set[str] = set()
    with _opened(url) as stream:
        files = ({**file, "__url__": url} for file in tar_file_iterator(stream, skip_meta=None))
        # What a handler lets pass here is a second member of the same name.
        for sample in group_by_keys(files, handler=lambda error: True):
            key = sample["__key__"]
            suffix = next((s for s in sample if f".{s}" in IMAGE_SUFFIXES), None)
            label = _label(sample)
            is_new = key not in keys and len(os.fsencode(key)) <= MAX_KEY_BYTES
            if suffix is not None and label is not None and is_new:
                keys.add(key)
                yield _Labelled(f"{key}.{suffix}", sample[suffix], label)


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """Start the program that reads a URL, and leave none behind."""
    from webdataset.gopen import Pipe

    command = _command(url)
    with _starting_a_program:
        guard = ProgramGuard()
        try:
            stream = Pipe(
                command,
                mode="rb",
                bufsize=BUFFER_BYTES,
                stdin=subprocess.DEVNULL,
                process_group=guard.group,
                ignore_status=_CUT_OFF,
            )
        except BaseException:
            guard.end()
            raise
    try:
        yield stream
    except _FAULTS:
        _check_status(stream)  # what the program says tells more
        raise
    finally:
        # Closing waits for its end, which would not come where a forked worker holds the pipe.
        stream.ignore_errors = True
        guard.end()
        stream.close()


def _command(url: str) -> list[str]:
    """Return the words that write what a URL names to stdout.

    Raises:
        OSError: If it is of no kind that is known.
        UserError: If the program is missing.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "pipe":
        return ["/bin/sh", "-c", _DEAF_TO_TERMINAL + rest]
    words = _PROGRAMS.get(scheme)
    if words is None:
        raise OSError(f"got '{url}', expected {', '.join(_PROGRAMS)} or pipe")
    if shutil.which(words[0]) is None:
        raise UserError(f"'{url}' is read by the program '{words[0]}', which is not installed.")
    return [url if word == "{url}" else word for word in words]


def _check_status(stream: Any) -> None:
    """Raise OSError if the program that reads a URL has failed; give it time to end."""
    try:
        status = stream.proc.wait(MAX_END_S)
    except subprocess.TimeoutExpired:
        return
    if status:
        raise OSError(f"the program that reads it ended with status {status}")


def _label(sample: Mapping[str, Any]) -> int | None:
    for suffix in ("cls", "json"):
        content = sample.get(suffix)
        if content is not None and len(content) <= MAX_LABEL_BYTES:
            return parse_label(f".{suffix}".encode(), content)
    return None


def _reason(error: BaseException) -> str:
    """Say what went wrong, without the pipe that the library prints along."""
    text = str(error.args[0]) if error.args else ""
    return re.sub(r" @ <.*", "", text) or type(error).__name__
