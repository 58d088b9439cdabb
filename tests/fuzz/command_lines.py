"""What is typed: the commands of README and docs with words left out, moved and replaced."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from random import Random

from tests.fuzz.kinds import Kind, Refused
from varlit.cli import main as command_line

ROOT = Path(__file__).parents[2]
TRAIN_OR_SERVE = {"demo", "quickstart", "doctor"}
"""The last starts programs that tell of the machine; it has tests of its own."""
ODD_WORDS = (
    *("", "x", "-1", "0", "1e9", "nan", ".nan", ".inf", "null", "true", "[", "{", "[1,2]"),
    *("{a: 1}", "\0", "--", "-", "--help", "-c", "--gpus", "digits", "d16", "9" * 20, "9" * 5000),
    *("\xe9", "\ud800", "${x}", "${oc.env:HOME}", "a" * 3000, "!!python/name:os.system", "1.5"),
    *("None", "[" * 500, "--model", "--data", "--name", "--print_config", "a=b", "=", "-c=", "*"),
    *("!!int ''", "!!timestamp x", "!!bool x", "!!float ''", "2026-99-99", "? [a]"),
    *("&a [*a]", "*a", "? x", "%s", "{}", "1:2", "2026-01-01", "0x10", "1_000", "@x", "%YAML 9"),
)


def known_lines() -> list[list[str]]:
    """The words after `varlit` of every command of the pages that neither trains nor fetches."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^varlit (.+)$", text, re.MULTILINE):
            with contextlib.suppress(ValueError):
                found.append(shlex.split(line, comments=True))
    safe = [words for words in found if words and is_safe(words)]
    assert len(safe) > 50
    return safe


def is_safe(words: list[str]) -> bool:
    """Whether a command, with `--dry_run`, does no work and asks nobody else."""
    is_offline = not any(re.search(r"://|hf:|pipe:|download|huggingface", w) for w in words)
    is_inside = not any(word.startswith(("/", "~")) for word in words)
    return is_offline and is_inside and words[0] not in TRAIN_OR_SERVE


def mutate_line(content: bytes, draw: Random) -> bytes:
    """One of the commands, changed."""
    lines = json.loads(content)
    words = list(draw.choice(lines))
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        words = _changed(words, lines, draw)
    return json.dumps([words]).encode()


def run_line(words: list[str]) -> str:
    """Run a command without work; what it prints, if that is what it was asked for.

    Raises:
        Refused: With what it said, where the exit code is 1 or 2.
        AssertionError: If it was refused without a word, or with another exit code.
    """
    if words[:1] and words[0] in {"tokenizer", "var"}:
        words = [*words, "--dry_run"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.main(words)
    told = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in told, told
    if code == 0:
        return out.getvalue()
    assert code == 1 or re.search(r"^varlit: ", told, re.MULTILINE), told
    raise Refused(told.partition("varlit: ")[2][:300].replace("\0", "?").splitlines()[0])


def _changed(words: list[str], lines: list[list[str]], draw: Random) -> list[str]:
    place, deed = draw.randrange(len(words) + 1), draw.randrange(6)
    is_inside = place < len(words)
    if deed == 0 and is_inside and len(words) > 1:
        return words[:place] + words[place + 1 :]
    if deed == 1:
        return [*words[:place], draw.choice(draw.choice(lines)), *words[place:]]
    if deed == 2 and is_inside:
        cut = words[place][: draw.randrange(len(words[place]) + 1)]
        return [*words[:place], cut + draw.choice(ODD_WORDS), *words[place + 1 :]]
    if deed == 3 and is_inside:
        other = draw.randrange(len(words))
        words[place], words[other] = words[other], words[place]
        return words
    if deed == 4 and is_inside:
        return [*words[:place], draw.choice(ODD_WORDS), *words[place + 1 :]]
    return [*words[:place], draw.choice(ODD_WORDS), *words[place:]]


def make_lines(folder: Path) -> None:
    (folder / "lines.json").write_text(json.dumps(known_lines()))


def read_lines(folder: Path) -> str:
    lines = json.loads((folder / "lines.json").read_text())
    if len(lines) > 1:
        return ""  # the sound ones are typed by tests/test_readme.py
    words = lines[0]
    if not is_safe(words) or words[0] not in command_line.VERBS:
        words = ["info", *words]
    return run_line(words)


def judge_text(got: object, original: object) -> str:
    """Whatever it printed is text."""
    return "" if isinstance(got, str) else f"{got!r}"


KINDS = (
    Kind(
        "command line",
        make_lines,
        read_lines,
        {"lines.json": (mutate_line,)},
        judge_text,
        share=0.6,
        right="done",
    ),
)
