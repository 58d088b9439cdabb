"""The flags that all benchmarks share, and how a benchmark is run from the command line."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.memory import peak_bytes, peak_bytes_alone
from harness.report import Report, append_section, run_facts
from harness.roofline import card_peak_tflops, flops_per_image
from harness.stopwatch import Rival, one_thread, race
from varlit.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark hands to `compete`."""

    script: Path
    """Its file; the stem is its name."""
    rivals: Sequence[Rival]
    """All rows, in the order of the table."""
    settings: Mapping[str, object]
    """What the reader must know to read the table."""
    notes: Sequence[str] = ()
    """Lines below it."""
    with_memory: bool = False
    """Whether peak memory is asked for."""
    lap_s: float = 0.2
    """Seconds that a lap lasts at least."""
    in_one_thread: bool = False
    """On a CPU: in one thread, by the processor's time, as parts are compared."""


def build_parser(description: str, sizes: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of every benchmark.

    Args:
        description: First line of the help.
        sizes: Names of the sizes to choose from.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=sizes, help="default: one that suits the device")
    parser.add_argument("--batch", type=int, default=0, help="images; default: the size's")
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="default: bf16-mixed on cuda"
    )
    parser.add_argument("--channels_last", action="store_true", help="weights and images in NHWC")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved laps of each")
    parser.add_argument("--lap_s", type=float, help="seconds that a lap lasts at least")
    parser.add_argument("--only", nargs="*", default=[], help="rows to run, by a part of the name")
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--peak_tflops", type=float, help="the device's limit, to give shares of it; known for H100"
    )
    parser.add_argument(
        "--out", type=Path, help="add the table to a .md file, or to <benchmark>-<device>.md in DIR"
    )
    parser.add_argument("--commit", default="", help="what git would say, where there is no git")
    parser.add_argument("--memory_of", metavar="ROW", help="print this row's peak bytes, and stop")
    return parser


def resolve(args: argparse.Namespace, cpu_size: str, cuda_size: str) -> argparse.Namespace:
    """Fill in what depends on the device.

    Raises:
        UserError: If a number is out of range or there is no GPU.
    """
    if args.rounds < 1 or args.batch < 0:
        raise UserError(f"--rounds starts at 1, --batch at 0; got {args.rounds}, {args.batch}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA GPU here; the CPU's benchmarks: make bench")
    is_cuda = args.device == "cuda"
    args.size = args.size or (cuda_size if is_cuda else cpu_size)
    args.precision = args.precision or ("bf16-mixed" if is_cuda else "32-true")
    args.device = torch.device(args.device)
    if args.peak_tflops is None:
        # The table of peaks is bf16's; a share of it would flatter nothing else.
        is_bf16 = args.precision == "bf16-mixed"
        args.peak_tflops = card_peak_tflops(args.device) if is_bf16 else 0.0
    return args


def chosen(rivals: Sequence[Rival], only: Sequence[str]) -> list[Rival]:
    """Rivals that were asked for; ratios to a reference that was not are left out.

    Raises:
        UserError: If nothing is called so.
    """
    kept = [r for r in rivals if not only or any(word in r.name for word in only)]
    if not kept:
        raise UserError(f"no row is called {list(only)}; rows: {[r.name for r in rivals]}")
    names = {r.name for r in kept}
    return [r if r.reference in names else replace(r, reference="") for r in kept]


def compete(benchmark: Benchmark, args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure, print, and write where `--out` says.

    Args:
        benchmark: What to measure.
        args: Resolved flags.
        words: The command line that they came from.

    Returns:
        Exit code.
    """
    is_cpu = args.device.type == "cpu"
    if is_cpu:
        # Random weights run into denormals, which cost a processor many times a normal number.
        torch.set_flush_denormal(True)
    with one_thread() if is_cpu and benchmark.in_one_thread else nullcontext():
        return _measured(benchmark, args, words)


def _measured(benchmark: Benchmark, args: argparse.Namespace, words: Sequence[str]) -> int:
    if args.memory_of:
        rival = next(r for r in benchmark.rivals if r.name == args.memory_of)
        print(peak_bytes(rival, args.device))
        return 0
    rivals = chosen(benchmark.rivals, args.only)
    peaks, flops = {}, {}
    if benchmark.with_memory and not args.no_memory:
        _say("measuring memory")
        peaks = {r.name: _memory(r, benchmark, args, words) for r in rivals}
    settings = dict(benchmark.settings)
    if args.peak_tflops:
        _say("counting operations")
        flops = {r.name: r.flops_per_image or flops_per_image(r) for r in rivals if r.is_counted}
        settings["assumed peak"] = f"{args.peak_tflops:g} TFLOP/s"
    if args.device.type == "cpu" and benchmark.in_one_thread:
        settings["clock"] = "processor time"
    _say(f"timing, {args.rounds} rounds")
    timings = race(rivals, args.rounds, benchmark.lap_s if args.lap_s is None else args.lap_s)
    title, notes = benchmark.script.stem, benchmark.notes
    publish(Report(title, settings, timings, peaks, flops, args.peak_tflops, notes), args)
    return 0


def publish(report: Report, args: argparse.Namespace) -> None:
    """Print a table, and write it where `--out` says."""
    print(report.for_terminal())
    if args.out is not None:
        path = args.out
        if path.suffix != ".md":
            path = path / f"{report.title}-{args.device.type}.md"
        append_section(path, report.title, report.for_file(run_facts(args.device, args.commit)))
        print(f"written: {path}")


def exit_code(main: Callable[[list[str]], int]) -> int:
    """Run a benchmark; a mistake that the user can mend is one line and 2."""
    try:
        return main(sys.argv[1:])
    except UserError as error:
        print(f"varlit: {error}", file=sys.stderr)
    except torch.cuda.OutOfMemoryError:
        print("varlit: the batch does not fit the GPU; give a smaller --batch", file=sys.stderr)
    return 2


def _memory(
    rival: Rival, benchmark: Benchmark, args: argparse.Namespace, words: Sequence[str]
) -> int:
    if args.device.type == "cuda":
        return peak_bytes(rival, args.device)
    return peak_bytes_alone(benchmark.script, list(words), rival.name)


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)
