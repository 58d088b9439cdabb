"""The images that a run could not use: skipped, counted, listed, and refused when they are many."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from varlit.disks import may_be_lost, open_no_link
from varlit.errors import UserError

LIST_FILE = "bad_files.txt"
MAX_SHARE = 0.001
"""The part of a data set that a run bears by default."""
FEWEST = 10
"""So many bad files never stop a run: of a few hundred photographs, one is more than 0.1 %."""

_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True)
class BadFile:
    """An image that was skipped, on its way from a worker to the main process.

    Attributes:
        name: Where a person finds it.
        reason: What is wrong with it.
        num_images: Images that are lost with it: more than one if it is a shard.
    """

    name: str
    reason: str
    num_images: int = 1

    @property
    def line(self) -> str:
        """Name and reason with a tab between them, as lists of bad files have it.

        The number of images follows where it is more than one.
        """
        number = f"\t{self.num_images}" if self.num_images > 1 else ""
        return f"{listed_name(self.name)}\t{' '.join(self.reason.split())}{number}\n"


def listed_name(name: str) -> str:
    """Return a name as it stands in a list: tabs, line ends and backslashes escaped."""
    return name.translate(_ESCAPES)


def bearable(num_images: int, max_share: float) -> int:
    """Return how many bad files a run on so many images bears."""
    return 0 if max_share == 0 else max(FEWEST, int(max_share * num_images))


@dataclass
class BadFiles:
    """The bad files of a run, each once; kept in `bad_files.txt`, so that a resumed run knows them.

    The processes of a run, and its training and validation, write one list and count what it
    holds.

    Attributes:
        folder: The run's folder; None keeps no list.
        num_images: Images of the data set, all splits together.
        max_share: Part of them that may be bad.
    """

    folder: Path | None
    num_images: int
    max_share: float
    _names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read()

    def __len__(self) -> int:
        return sum(self._names.values())

    @property
    def limit(self) -> int:
        """How many bad files the run bears."""
        return bearable(self.num_images, self.max_share)

    def add(self, bad: BadFile) -> None:
        """Warn of a file that has not been seen before, and list it.

        Raises:
            UserError: If there are now more than the run bears, also when it is started again.
        """
        name = listed_name(bad.name)
        if name not in self._names:
            self._read()
        if name not in self._names:
            self._names[name] = bad.num_images
            self._write(bad)
            warnings.warn(f"skipped the bad image '{bad.name}' ({bad.reason}).", stacklevel=3)
        if len(self) > self.limit:
            listed = f"; '{self._list}' lists them" if self._list else ""
            mended = ", then delete that list" if self._list else ""
            raise UserError(
                f"{len(self)} of {self.num_images:,} images cannot be used, such as '{bad.name}' "
                f"({bad.reason}); max_bad_share {self.max_share:g} bears {self.limit}{listed}. "
                f"Mend or remove them (`varlit doctor --data PATH` finds them all){mended}, or "
                "raise max_bad_share."
            )

    @property
    def _list(self) -> Path | None:
        return self.folder / LIST_FILE if self.folder else None

    def _read(self) -> None:
        """Take in what another process, or this run before it was interrupted, has listed."""
        if self._list is not None and self._list.is_file():
            lines = self._list.read_bytes().decode("utf-8", "surrogateescape").split("\n")
            for name, _, *number in (line.split("\t") for line in lines if "\t" in line):
                self._names[name] = int(number[0]) if number and number[0].isdigit() else 1

    def _write(self, bad: BadFile) -> None:
        if self._list is None:
            return
        with may_be_lost("names of bad files", self._list):
            self._list.parent.mkdir(parents=True, exist_ok=True)
            # One write to a file opened for appending: several processes may share the list.
            handle = open_no_link(self._list, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(handle, bad.line.encode("utf-8", "surrogateescape"))
            finally:
                os.close(handle)
