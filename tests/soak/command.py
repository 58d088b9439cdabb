"""Rounds of the pipeline under random signals until the time is up; ends with a table."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.soak.compare import differences, files
from tests.soak.killer import KINDS, BrokenOffError, Kill, Moments, Starter, run_through
from tests.soak.pipeline import STAGES, Size, prepare

SHOWN = 20


@dataclass(frozen=True)
class Round:
    """One pipeline from the first step to the last figure."""

    kills: list[Kill]
    num_starts: int
    seconds: float
    wrong: list[str]


@dataclass(frozen=True)
class Soak:
    """All rounds, beside the undisturbed one."""

    whole_s: float
    num_files: int
    rounds: list[Round]

    @property
    def is_exact(self) -> bool:
        return not any(done.wrong for done in self.rounds)

    @property
    def kills(self) -> list[Kill]:
        return [kill for done in self.rounds for kill in done.kills]


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 if a round ended in other bits than the undisturbed one."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    place = Path(args.keep or tempfile.mkdtemp(prefix="varlit-soak-"))
    kinds = tuple(signal.Signals[f"SIG{name}"] for name in args.signals.split(","))
    minutes = args.minutes if args.kills is None else None
    try:
        found = soak(place, Size(args.epochs, args.steps), args, kinds, minutes)
    except BrokenOffError as error:
        print(f"soak: {error}\nsoak: logs are in {place}", file=sys.stderr)
        return 1
    if found.is_exact and not args.keep:
        shutil.rmtree(place)
    table = as_table(found)
    print(table)
    for line in [line for done in found.rounds for line in done.wrong][:SHOWN]:
        print(f"soak: {line}", file=sys.stderr)
    if args.out:
        write_results(Path(args.out), table, args)
    return int(not found.is_exact)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="time for signals")
    parser.add_argument("--kills", type=int, default=None, help="so many signals, and no clock")
    parser.add_argument("--seed", type=int, default=0, help="of moments and kinds")
    parser.add_argument("--gap", type=float, default=6.0, help="mean seconds between signals")
    parser.add_argument("--signals", default="KILL,TERM,INT,USR1", help="to draw from")
    parser.add_argument("--epochs", type=int, default=Size.epochs, help="of each stage")
    parser.add_argument("--steps", type=int, default=Size.epoch_steps, help="an epoch; 0 = all")
    parser.add_argument("--keep", default="", help="folder to work in, which stays")
    parser.add_argument("--out", default="", help="folder for soak-cpu.md")
    return parser


def soak(
    place: Path,
    size: Size,
    args: argparse.Namespace,
    kinds: tuple[int, ...] = KINDS,
    minutes: float | None = None,
) -> Soak:
    """Run the pipeline undisturbed, then under signals until time or signals are used up.

    Raises:
        BrokenOffError: If a command fails that nobody killed, or hangs.
    """
    with Starter(place / "cache") as starter:
        whole = place / "whole"
        whole_s = _one(starter, whole, size)
        end_s = None if minutes is None else time.monotonic() + 60 * minutes
        moments = Moments(args.seed, args.gap, kinds, args.kills, end_s)
        rounds: list[Round] = []
        while not moments.is_over:
            folder, before = place / f"round-{len(rounds) + 1}", len(moments.sent)
            began_s = time.monotonic()
            # References are computed anew in each round, so that this is interrupted too.
            shutil.rmtree(place / "cache", ignore_errors=True)
            prepare(folder, size)
            num_starts = run_through(starter, STAGES, folder, moments)
            seconds = time.monotonic() - began_s
            wrong = differences(whole, folder)
            wrong += [f"process {number} lives on" for number in starter.orphans()]
            rounds.append(Round(moments.sent[before:], num_starts, seconds, wrong))
            verdict = f"{len(wrong)} differences" if wrong else "the same bits"
            num = len(rounds[-1].kills)
            print(f"round {len(rounds)}: {num} signals, {seconds:.0f} s, {verdict}", flush=True)
            if wrong:
                break
            shutil.rmtree(folder)
    return Soak(whole_s, len(files(whole)), rounds)


def _one(starter: Starter, folder: Path, size: Size) -> float:
    """Run the pipeline undisturbed; returns the seconds it took."""
    began_s = time.monotonic()
    prepare(folder, size)
    run_through(starter, STAGES, folder)
    return time.monotonic() - began_s


def as_table(found: Soak) -> str:
    """Signals by stage and kind, and what came of them."""
    counts = Counter((kill.stage, kill.number) for kill in found.kills)
    rows = [f"| {'Stage'} | {' | '.join(n.name for n in KINDS)} | Seconds after its start |"]
    rows += ["| --- " * (len(KINDS) + 2) + "|"]
    for stage in STAGES:
        after = [kill.after_s for kill in found.kills if kill.stage == stage.name]
        span = f"{min(after):.1f} to {max(after):.1f}" if after else "none"
        cells = " | ".join(str(counts[stage.name, n]) for n in KINDS)
        rows.append(f"| {stage.name} | {cells} | {span} |")
    totals = Counter(kill.number for kill in found.kills)
    rows.append(f"| all | {' | '.join(str(totals[n]) for n in KINDS)} | |")
    starts = sum(done.num_starts for done in found.rounds)
    seconds = sum(done.seconds for done in found.rounds)
    wrong = sum(len(done.wrong) for done in found.rounds)
    verdict = "every round ended in the same bits" if not wrong else f"{wrong} differences"
    return "\n".join(
        (
            *rows,
            "",
            f"{len(found.rounds)} pipelines, {len(found.kills)} signals, {starts} starts of "
            f"{len(found.rounds) * len(STAGES)} commands, {seconds:,.0f} s; undisturbed one takes "
            f"{found.whole_s:.0f} s. {found.num_files} files compared in each.",
            "",
            f"Verdict: {verdict}.",
        )
    )


def write_results(folder: Path, table: str, args: argparse.Namespace) -> None:
    """Keep a table beside the benchmarks."""
    length = f"--kills {args.kills}" if args.kills is not None else f"--minutes {args.minutes:g}"
    options = f"--epochs {args.epochs} --steps {args.steps} --gap {args.gap:g}"
    command = f"python -m tests.soak {length} --seed {args.seed} {options}"
    lines = (
        "# The digits pipeline under random signals",
        "",
        f"`{command}`, on {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, torch "
        f"{torch.__version__}.",
        "Tokenizer with its game, token cache, VAR with averaged weights, evaluation; each command",
        "is started again, word for word, until it ends. Compared with an undisturbed pipeline:",
        "weights, optimizers, all else in checkpoints, cache, pictures, scalars, figures.",
        "",
        table,
        "",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak-cpu.md").write_text("\n".join(lines))
