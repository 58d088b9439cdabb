"""What may happen to a file: bits, cuts, swaps, and other content in a sound envelope."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

HUGE = (2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308, -1e308)
ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, float("nan"), float("inf"), -float("inf"))
ODD_TEXTS = (
    *("", "x", "0", "1e9", "nan", "None", "true", "\0", "\n", "a" * 5000, "\ud800", "\u202e"),
    *("../x", "../../../../etc/passwd", "/etc/passwd", "..", ".", "C:\\x", "a/b", "pipe:touch x"),
    *("!!int ''", "!!timestamp x", "!!bool x", "2026-99-99"),
    *("http://127.0.0.1:9/x", "${oc.env:HOME}", "!!python/object/apply:os.system [touch x]", "%s"),
)
INTERESTING = (b"\0", b"\xff", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f")
MAX_DEPTH = 3000


def mutate_bytes(content: bytes, draw: Random) -> bytes:
    """One to four accidents of a disk or a network."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        content = draw.choice(BYTE_ACCIDENTS)(content, draw)
    return content


def mutate_json(content: bytes, draw: Random) -> bytes:
    """Other values in sound JSON; at times a key twice, which json.dumps cannot write."""
    tree = mutate_tree(json.loads(content), draw)
    text = json.dumps(tree)
    if draw.random() < 0.1 and isinstance(tree, dict) and tree:
        key = draw.choice(list(tree))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(odd_value(draw))}}}"
    return text.encode("utf-8", "surrogatepass" if draw.random() < 0.5 else "replace")


def mutate_zip(content: bytes, draw: Random) -> bytes:
    """A sound zip file, checksums included, of other members: what somebody could have made."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = draw.randrange(len(members))
    name, inside = members[place]
    deed = draw.randrange(6)
    if deed <= 2:
        members[place] = name, mutate_bytes(inside, draw)
    elif deed == 3:
        del members[place]
    elif deed == 4:
        members[place] = draw.choice(("../x.npy", "/x.npy", "x", name.upper(), "")), inside
    else:
        other = draw.choice(members)[0]
        members.append((other, mutate_bytes(inside, draw)))
    return write_zip(members)


def write_zip(members: list[tuple[str, bytes]]) -> bytes:
    """Members as an uncompressed zip file; a name may come twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, inside in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a name may come twice
                archive.writestr(zipfile.ZipInfo(name or "x"), inside)
    return out.getvalue()


def mutate_text(content: bytes, draw: Random) -> bytes:
    """Other lines: moved, repeated, left out, with another value or another depth."""
    lines = content.decode("utf-8", "replace").splitlines() or [""]
    place = draw.randrange(len(lines))
    deed = draw.randrange(7)
    if deed == 0:
        del lines[place]
    elif deed == 1:
        lines.insert(draw.randrange(len(lines) + 1), lines[place])
    elif deed == 2:
        lines[place] = draw.choice(("  ", "\t", "- ", "? ", "&a ", "*a ", "!!x ")) + lines[place]
    elif deed == 3:
        lines[place] = lines[place].lstrip()
    elif deed == 4:
        key = lines[place].partition(":")[0]
        lines[place] = f"{key}: {odd_value(draw)}"
    elif deed == 5:
        lines[place] += draw.choice(("[", "{", '"', "'", ": |", "#", "\\", "]" * 3, "${x}"))
    else:
        lines[place] = draw.choice("[{-") * draw.choice((2, 50, MAX_DEPTH))
    return "\n".join(lines).encode("utf-8", "replace")


def mutate_tree(tree: Any, draw: Random) -> Any:
    """A copy of nested dicts and lists with one to three places that are otherwise."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        tree = _mutate_node(tree, draw)
    return tree


def odd_value(draw: Random) -> Any:
    """A value that nobody expects."""
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice(HUGE)
    if kind <= 2:
        return draw.choice(ODD_NUMBERS)
    if kind <= 4:
        return draw.choice(ODD_TEXTS)
    if kind == 5:
        return draw.choice((None, True, False))
    if kind == 6:
        return draw.choice(([], {}, [[]], [1, 2, 3], {"a": 1}, [None], [0] * 1000, {"": {}}))
    return nested(draw.choice((10, 200, MAX_DEPTH)) if draw.random() < 0.3 else 3)


def nested(depth: int) -> list[Any]:
    """A list in a list in a list; deeper than json.dumps goes is of no use."""
    value: list[Any] = []
    for _ in range(min(depth, 200)):
        value = [value]
    return value


def _mutate_node(node: Any, draw: Random) -> Any:
    if isinstance(node, dict) and node and draw.random() < 0.9:
        return _mutate_dict(dict(node), draw)
    if isinstance(node, list | tuple) and node and draw.random() < 0.8:
        return _mutate_list(list(node), draw)
    if isinstance(node, bool):
        return draw.choice((not node, odd_value(draw)))
    if isinstance(node, int) and draw.random() < 0.5:
        real = float(node) if abs(node) < 2**53 else node
        return draw.choice((node + 1, node - 1, -node, node * 1000, real, str(node)))
    return odd_value(draw)


def _mutate_dict(node: dict[Any, Any], draw: Random) -> dict[Any, Any]:
    key = draw.choice(list(node))
    deed = draw.randrange(10)
    if deed == 0:
        del node[key]
    elif deed == 1:
        node[draw.choice(("", "x", "__class__", str(key) + "s"))] = node[key]
    elif deed == 2:
        node[key] = node[draw.choice(list(node))]
    else:
        node[key] = _mutate_node(node[key], draw)
    return node


def _mutate_list(node: list[Any], draw: Random) -> list[Any]:
    place = draw.randrange(len(node))
    deed = draw.randrange(8)
    if deed == 0:
        del node[place]
    elif deed == 1:
        node.insert(place, node[draw.randrange(len(node))])
    elif deed == 2:
        node.reverse()
    else:
        node[place] = _mutate_node(node[place], draw)
    return node


def _span(content: bytes, draw: Random) -> slice:
    start = draw.randrange(len(content) + 1)
    return slice(start, min(len(content), start + draw.choice((1, 2, 4, 16, 512, 5000))))


def _flip(content: bytes, draw: Random) -> bytes:
    if not content:
        return b"\0"
    changed = bytearray(content)
    # Half of the time near an end, where headers and directories are.
    near = min(len(content), 256)
    place = draw.choice(
        (draw.randrange(len(content)), draw.randrange(near), -1 - draw.randrange(near))
    )
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return draw.choice((content[:place], content[place:], content[:-1]))


def _remove(content: bytes, draw: Random) -> bytes:
    span = _span(content, draw)
    return content[: span.start] + content[span.stop :]


def _repeat(content: bytes, draw: Random) -> bytes:
    span = _span(content, draw)
    return content[: span.stop] + content[span] + content[span.stop :]


def _swap(content: bytes, draw: Random) -> bytes:
    a, b = _span(content, draw), _span(content, draw)
    changed = bytearray(content)
    changed[a], changed[b] = content[b][: a.stop - a.start], content[a][: b.stop - b.start]
    return bytes(changed)


def _insert(content: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.randbytes(draw.choice((1, 2, 8, 512))) + content[place:]


def _overwrite(content: bytes, draw: Random) -> bytes:
    place, value = draw.randrange(len(content) + 1), draw.choice(INTERESTING)
    return content[:place] + value + content[place + len(value) :]


def _zeros(content: bytes, draw: Random) -> bytes:
    span = _span(content, draw)
    return content[: span.start] + bytes(span.stop - span.start) + content[span.stop :]


BYTE_ACCIDENTS: tuple[Mutation, ...] = (
    *(_flip, _flip, _flip, _cut, _remove, _repeat, _swap, _insert, _overwrite, _zeros),
)
