"""All kinds in one go, each in a process of its own that may die; ends with a table."""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import command_lines, data_files, model_files, picture_files, training_files
from tests.fuzz.kinds import Kind
from tests.fuzz.trials import LIMIT_BYTES, LIMIT_S, Folder, Outcome, confine, run

KINDS = (
    *data_files.KINDS,
    *picture_files.KINDS,
    *training_files.KINDS,
    *model_files.KINDS,
    *command_lines.KINDS,
)
SHOWN = 3


@dataclass
class Row:
    """What came of one kind."""

    kind: Kind
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    wrong: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: Outcome) -> None:
        self.counts[outcome.verdict] += 1
        if outcome.verdict == "wrong":
            self.wrong.append((number, outcome.reason))


def main(argv: list[str] | None = None) -> int:
    """Change files and read them; 1 if one was neither refused nor read correctly."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    kinds = [kind for kind in KINDS if not args.kind or kind.name in args.kind]
    shares = sum(kind.share for kind in kinds)
    counts = [max(1, round(args.count * kind.share / shares)) for kind in kinds]
    counts[0] += args.count - sum(counts)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(args.processes) as pool:
        # Without threads where one process is enough.
        each: Any = map if args.processes == 1 else pool.map
        shares_of = [range(args.first, args.first + count) for count in counts]
        rows = list(each(lambda kind, n: try_kind(kind, n, args.seed, place), kinds, shares_of))
    table = as_table(rows, time.monotonic() - start)
    print(table)
    for row in rows:
        for number, reason in row.wrong[: args.shown]:
            print(f"\n{row.kind.name}, number {number}:\n{reason}")
    if args.out:
        write_results(Path(args.out), table, args)
    return int(any(row.wrong for row in rows))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="files, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="of all changes")
    parser.add_argument("--first", type=int, default=0, help="number of each kind's first file")
    parser.add_argument("--kind", action="append", help="one kind alone, by its name; repeatable")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--shown", type=int, default=SHOWN, help="wrong ones shown of each kind")
    parser.add_argument("--out", default="", help="folder for fuzz-cpu.md")
    return parser


def try_kind(kind: Kind, numbers: range, seed: int, place: str) -> Row:
    """Try files of a kind; where the process dies, the file counts as wrong and the next begins."""
    row, start = Row(kind), time.monotonic()
    context: Any = multiprocessing.get_context("fork")
    left = list(numbers)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        root = Path(tempfile.mkdtemp(dir=place))
        worker = context.Process(target=_work, args=(sender, kind, left, seed, root))
        worker.start()
        sender.close()
        left = left[_gather(receiver, row) :]
        worker.join()
        if worker.exitcode and left:
            row.add(left[0], Outcome("wrong", f"the process ended with {worker.exitcode}"))
            left = left[1:]
    row.seconds = time.monotonic() - start
    return row


def _work(sender: Connection, kind: Kind, numbers: list[int], seed: int, root: Path) -> None:
    os.environ |= {"VARLIT_CACHE": "", "TMPDIR": str(root), "HF_HOME": str(root / "hf")}
    tempfile.tempdir = str(root)
    os.chdir(root)
    folder = Folder(kind, root / "files")
    confine(root)
    run(folder, numbers, seed, lambda number, outcome: sender.send((number, outcome)))
    sender.close()


def _gather(receiver: Connection, row: Row) -> int:
    num_told = 0
    while True:
        try:
            number, outcome = receiver.recv()
        except EOFError:
            return num_told
        row.add(number, outcome)
        num_told += 1


def as_table(rows: list[Row], seconds: float) -> str:
    """The counts of each kind and of all, as Markdown."""
    lines = [
        "| Kind | Mutated | Refused | Read | Read as | Wrong | Seconds |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    total: Counter[str] = Counter()
    for row in rows:
        total += row.counts
        lines.append(_line(row.kind.name, row.counts, row.kind.right, row.seconds))
    return "\n".join([*lines, _line("**All**", total, "", seconds)])


def _line(name: str, counts: Counter[str], right: str, seconds: float) -> str:
    told = " | ".join(
        [f"{sum(counts.values()):,}", f"{counts['refused']:,}", f"{counts['read']:,}", right]
    )
    return f"| {name} | {told} | {counts['wrong']:,} | {seconds:.0f} |"


def write_results(folder: Path, table: str, args: argparse.Namespace) -> None:
    """Keep a table beside the benchmarks."""
    command = f"python -m tests.fuzz --count {args.count} --seed {args.seed}"
    lines = (
        "# Files that were changed at random",
        "",
        f"`{command}`, with at most {LIMIT_S} s and {LIMIT_BYTES / 2**30:.0f} GiB a file.",
        "Wrong would be: another exception, a hang, a process that dies, a file written elsewhere,",
        "a program started, or a content that is neither refused nor what the column says.",
        "",
        table,
        "",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fuzz-cpu.md").write_text("\n".join(lines))
