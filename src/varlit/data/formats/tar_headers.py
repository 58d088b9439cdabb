"""The headers of a tar file (ustar, GNU, pax), walked without reading what lies between them.

Python's tarfile is too slow for a million members and too lenient: it takes damage for the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
MAX_NAME_BYTES = 1 << 20
MAX_PADDING_BYTES = 1 << 20
"""Tar pads its end with zeros to its block size, 10 KiB by default; more is lost data."""
EMPTY_TAR_BYTES = 10240

_ZEROS = bytes(BLOCK)
_FILE_KINDS = (b"0", b"\0", b"7")
_NO_DATA_KINDS = (b"1", b"2", b"3", b"4", b"5", b"6")


class TarDamage(Exception):
    """Why a tar cannot be walked on; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar.

    Attributes:
        name: As stored, whatever its encoding.
        offset: Where its bytes begin.
        size: How many they are.
        head: The first of them, up to a block, and what follows them.
    """

    name: bytes
    offset: int
    size: int
    head: bytes


def walk_members(handle: int, num_bytes: int) -> Iterator[Member]:
    """Yield the files of a tar, in its order.

    Args:
        handle: File descriptor.
        num_bytes: Size of the tar.

    Raises:
        TarDamage: Where it is cut off or not a tar.
    """
    at, name, size = 0, b"", -1
    while at < num_bytes:
        block = os.pread(handle, 2 * BLOCK, at)
        header = block[:BLOCK]
        if header == _ZEROS:
            _check_end(handle, at, num_bytes)
            return
        kind, own_name, own_size = _parse(header, at)
        if size >= 0 and kind in _FILE_KINDS:
            own_size = size
        data, at = at + BLOCK, at + BLOCK + -(-own_size // BLOCK) * BLOCK
        if data + own_size > num_bytes:
            raise TarDamage(f"cut off at byte {num_bytes:,}")
        if kind == b"L":
            name = _long(handle, data, own_size).rstrip(b"\0")
        elif kind == b"x":
            records = _parse_pax(_long(handle, data, own_size))
            name = records.get(b"path", name)
            size = _pax_size(records, data)
        elif kind not in b"gK":
            if kind in _FILE_KINDS:
                head = block[BLOCK : BLOCK + own_size]
                yield Member(name or own_name, data, own_size, head)
            name, size = b"", -1
    raise TarDamage("empty" if num_bytes == 0 else f"cut off at byte {num_bytes:,}, without an end")


def _parse(header: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Return kind, name and size of the data that follows."""
    if len(header) < BLOCK:
        raise TarDamage(f"cut off at byte {at + len(header):,}")
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    try:
        if int(header[148:156].split(b"\0")[0].strip() or b"-1", 8) != total:
            raise ValueError
        size = _number(header[124:136])
    except ValueError:
        raise TarDamage(_not_a_header(header, at)) from None
    kind, name = header[156:157], header[:100].split(b"\0", 1)[0]
    if kind == b"S":
        raise TarDamage(f"a sparse file at byte {at:,}, which is not supported")
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    if kind in _NO_DATA_KINDS or (kind == b"\0" and name.endswith(b"/")):
        return b"5", name, 0
    return kind, name, size


def _number(text: bytes) -> int:
    """Read octal digits, or GNU's binary for what they cannot hold."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    size = int(text.split(b"\0")[0].strip() or b"0", 8)
    if size < 0:
        raise ValueError
    return size


def _not_a_header(header: bytes, at: int) -> str:
    if at > 0:
        return f"garbage at byte {at:,}"
    if header.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "compressed, expected a plain tar: decompress it"
    return "not a tar file"


def _long(handle: int, offset: int, size: int) -> bytes:
    if size > MAX_NAME_BYTES:
        raise TarDamage(f"a name of {size:,} bytes at byte {offset:,}")
    return os.pread(handle, size, offset)


def _parse_pax(content: bytes) -> dict[bytes, bytes]:
    """Parse records of `<length> <key>=<value>`, newline included in the length."""
    records = {}
    while content:
        length = content.split(b" ", 1)[0]
        if not length.isdigit() or int(length) <= len(length) + 1:
            break
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key] = value
        content = content[int(length) :]
    return records


def _pax_size(records: dict[bytes, bytes], at: int) -> int:
    if any(key.startswith(b"GNU.sparse") for key in records):
        raise TarDamage(f"a sparse file at byte {at:,}, which is not supported")
    size = records.get(b"size", b"-1")
    return int(size) if size.isdigit() else -1


def _check_end(handle: int, at: int, num_bytes: int) -> None:
    """Tell the end from a hole: after it there are zeros alone, and not many."""
    allowed = MAX_PADDING_BYTES if at > 0 else EMPTY_TAR_BYTES
    if num_bytes - at > allowed:
        raise TarDamage(f"zeros from byte {at:,} to its end at {num_bytes:,}")
    if os.pread(handle, num_bytes - at, at).strip(b"\0"):
        raise TarDamage(f"a hole of zeros at byte {at:,}")
