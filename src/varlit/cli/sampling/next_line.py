"""The last line that `varlit sample` and `varlit edit` print: the same command, other pictures."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from varlit.cli.verbs import typed


def next_line(verb: str, argv: Sequence[str], seed: int, out: Path) -> str:
    """The command that draws the next pictures of the same kind, and writes them beside these.

    Args:
        verb: Such as `sample`.
        argv: What followed it; every flag is kept but for the seed and the name of the picture.
        seed: Of the next picture.
        out: Where the pictures of this one lie.
    """
    words, rest = list(argv), list[str]()
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at:]
    words = without(without(words, "--seed"), "--out")
    words += ["--seed", str(seed), "--out", str(of_seed(out, seed))]
    return "next: " + typed(shlex.join(["varlit", verb, *words, *rest]))


def without(words: Sequence[str], flag: str) -> list[str]:
    """Words of a command line without a flag and its value, however it was typed."""
    kept = []
    given = iter(words)
    for word in given:
        if word == flag:
            next(given, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def of_seed(out: Path, seed: int) -> Path:
    """The name of a picture with a seed in it, in place of one that it may have had."""
    stem = re.sub(r"-seed-?\d+$", "", out.stem)
    return out.with_name(f"{stem}-seed{seed}{out.suffix}")
