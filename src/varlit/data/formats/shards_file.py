"""`shards.json`: what lies in a folder of tar shards, written beside them by `varlit data`.

It says how many images each shard holds before any shard is opened, which streams need for equal
parts, and names the classes, of which a tar knows the numbers alone. Shards that are named by a
brace pattern instead are expanded here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from varlit.data.whole_files import write_json
from varlit.errors import UserError

SHARDS_FILE = "shards.json"
FORMAT = "varlit shards"
VERSION = 1
REMEDY = "write it again with `varlit data index FOLDER`"
MAX_PATTERN_FILES = 100_000

_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        file: Its path from the folder of shards.json on, with forward slashes.
        count: Images in it that have a label.
        num_bytes: Its size.
        sha256: Of the whole file.
    """

    file: str
    count: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardList:
    """The shards of a data set.

    Attributes:
        class_names: Names in the order of the labels.
        splits: Shards by split, in the order of the rows; "train" is always there.
    """

    class_names: tuple[str, ...]
    splits: dict[str, tuple[Shard, ...]]

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return sum(shard.count for shard in self.splits[split])


def read_shard_list(source: Path | str, place: str = "") -> ShardList:
    """Read and check a shard list.

    Args:
        source: The file, or its text where it came over the network.
        place: Where the text is from, for messages; a file is its own place.

    Raises:
        UserError: If it cannot be read, or is not what `write_shard_list` writes.
    """
    place = str(source) if isinstance(source, Path) else place or SHARDS_FILE
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read '{place}': {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{place}' is not valid JSON ({error}): {REMEDY}.") from error
    try:
        return _parse(content)
    except (_Fault, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"'{place}' is not a list of shards ({reason}): {REMEDY}.") from error


def write_shard_list(shards: ShardList, folder: Path) -> Path:
    """Write shards.json; the same list gives the same bytes.

    Raises:
        UserError: If it cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "class_names": list(shards.class_names),
        "splits": {
            split: [asdict(shard) for shard in listed] for split, listed in shards.splits.items()
        },
    }
    write_json(folder / SHARDS_FILE, content)
    return folder / SHARDS_FILE


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..099}` and `{a,b}`, also several and nested, in the order of a shell.

    >>> expand_braces("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']

    Raises:
        UserError: If a brace is not closed, or the pattern names more than 100,000 files.
    """
    if pattern.count("{") != pattern.count("}"):
        raise UserError(
            f"'{pattern}' has a brace that is not closed: expected a pattern such as "
            "train-{000000..000099}.tar."
        )
    names: list[str] = []
    try:
        for name in _expanded(pattern):
            names.append(name)
            if len(names) > MAX_PATTERN_FILES:
                raise UserError(
                    f"'{pattern}' names more than {MAX_PATTERN_FILES:,} files: shorten its ranges."
                )
    except RecursionError:
        raise UserError(f"'{pattern[:80]}' has braces too deep or too many: use fewer.") from None
    return names


class _Fault(ValueError):
    """What is wrong with a list; the text is the reason."""


def _parse(content: Any) -> ShardList:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _Fault(f'expected "format": "{FORMAT}"')
    if content["version"] != VERSION:
        raise _Fault(f"version {content['version']!r}, this varlit reads {VERSION}")
    names = content["class_names"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise _Fault("class_names are not names")
    splits = {
        split: tuple(_parse_shard(entry) for entry in entries)
        for split, entries in content["splits"].items()
    }
    if not splits.get("train"):
        raise _Fault("no train shards")
    files = [shard.file for listed in splits.values() for shard in listed]
    if len(set(files)) < len(files):
        raise _Fault("a shard is listed twice")
    return ShardList(tuple(names), {split: listed for split, listed in splits.items() if listed})


def _parse_shard(entry: Mapping[str, Any]) -> Shard:
    shard = Shard(entry["file"], entry["count"], entry["num_bytes"], entry["sha256"])
    if not isinstance(shard.file, str) or not isinstance(shard.sha256, str):
        raise _Fault(f"a shard is called {shard.file!r}")
    path = PurePosixPath(shard.file)
    if path.is_absolute() or ".." in path.parts or not path.name or "://" in shard.file:
        # A list from elsewhere must not make us read files outside its folder.
        raise _Fault(f"'{shard.file}' is not below the folder")
    for number in (shard.count, shard.num_bytes):
        if type(number) is not int or number < 0:
            raise _Fault(f"'{shard.file}' has a size of {number!r}")
    return shard


def _expanded(pattern: str) -> Iterator[str]:
    start = pattern.find("{")
    if start < 0:
        yield pattern
        return
    end = _closing(pattern, start)
    tails = expand_braces(pattern[end + 1 :])
    for choice in _choices(pattern[start + 1 : end]):
        for tail in tails:
            yield pattern[:start] + choice + tail


def _closing(pattern: str, start: int) -> int:
    depth = 0
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    raise UserError(f"'{pattern}' has a brace that is not closed: close it.")


def _choices(inner: str) -> Iterator[str]:
    if bounds := _RANGE.fullmatch(inner):
        first, last = bounds.groups()
        # As in a shell: a leading zero on either side pads all.
        padded = any(len(word) > 1 and word.startswith("0") for word in (first, last))
        width = max(len(first), len(last)) if padded else 0
        step = 1 if int(last) >= int(first) else -1
        for number in range(int(first), int(last) + step, step):
            yield f"{number:0{width}d}"
        return
    words = _split_commas(inner)
    if len(words) == 1:
        raise UserError(
            f"'{{{inner}}}' is neither a range such as {{000..099}} nor a choice such as {{a,b}}."
        )
    for word in words:
        yield from _expanded(word)


def _split_commas(inner: str) -> list[str]:
    words, depth = [""], 0
    for letter in inner:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return words
