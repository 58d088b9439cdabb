"""The table of a benchmark, for the terminal and for benchmarks/results/."""

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from harness.stopwatch import Timing

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "lightning")
NO_VALUE = "-"


@dataclass(frozen=True)
class Report:
    """Everything that one run of a benchmark found."""

    title: str
    settings: Mapping[str, object]
    timings: Sequence[Timing]
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """By name of rival; those without are left blank."""
    flops_per_image: Mapping[str, float] = field(default_factory=dict)
    peak_tflops: float = 0.0
    notes: Sequence[str] = ()

    def table(self) -> list[list[str]]:
        """Header and rows as text; columns that nobody filled are left out."""
        header = ["what", "ms", "spread", "images/s", "speed", "peak MiB", "GFLOP/image", "of peak"]
        more = list(dict.fromkeys(name for t in self.timings for name in t.rival.extra))
        rows = [self._row(timing) + _extra(timing, more) for timing in self.timings]
        header += more
        kept = [i for i in range(len(header)) if any(row[i] != NO_VALUE for row in rows)]
        return [[row[i] for i in kept] for row in [header, *rows]]

    def _row(self, timing: Timing) -> list[str]:
        name, by_name = timing.rival.name, {t.rival.name: t for t in self.timings}
        if timing.failure:
            return [name, timing.failure, *[NO_VALUE] * 6]
        row = [name, _number(timing.median_s * 1e3), f"{timing.spread:.1%}"]
        row.append(_number(timing.images_per_s) if timing.rival.num_images else NO_VALUE)
        reference = by_name.get(timing.rival.reference)
        if reference is None or reference.failure:
            row.append(NO_VALUE)
        else:
            row.append(f"{timing.speed_over(reference):.2f}x")
        peak = self.peak_bytes.get(name)
        row.append(NO_VALUE if peak is None else f"{peak / 2**20:,.0f}")
        flops = self.flops_per_image.get(name)
        row.append(NO_VALUE if flops is None else _number(flops / 1e9))
        has_share = flops is not None and self.peak_tflops
        share = (flops or 0.0) * timing.images_per_s / 1e12 / (self.peak_tflops or 1.0)
        return [*row, f"{share:.1%}" if has_share else NO_VALUE]

    def for_terminal(self) -> str:
        """Aligned columns under the settings, notes below."""
        table = self.table()
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [f"{self.title}: {_listed(self.settings)}"]
        for first, *rest in table:
            cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]))
        return "\n".join([*lines, *self.notes])

    def for_file(self, facts: Mapping[str, object]) -> str:
        """A section of Markdown: when, on what, the table, the notes."""
        header, *rows = self.table()
        heading = ["date", "commit", "device"]
        rest = {name: fact for name, fact in facts.items() if name not in heading}
        ruler = ["---", *["---:"] * (len(header) - 1)]
        lines = ["## " + ", ".join(str(facts[name]) for name in heading), ""]
        lines += [f"{_listed(self.settings)}; {_listed(rest)}.", ""]
        lines += ["| " + " | ".join(row) + " |" for row in [header, ruler, *rows]]
        if self.notes:
            lines += ["", *[f"- {note}" for note in self.notes]]
        return "\n".join(lines) + "\n"


def run_facts(device: torch.device, commit: str = "") -> dict[str, object]:
    """When and where this process runs."""
    return {
        "date": datetime.datetime.now().astimezone().date().isoformat(),
        "commit": commit or git_commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **({"CUDA": torch.version.cuda} if device.type == "cuda" else {}),
    }


def device_name(device: torch.device) -> str:
    """Name of the card or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str:
    """Short name of the commit, marked where files differ from it; results do not count."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        edited = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"
    return f"commit {commit} (dirty)" if edited else f"commit {commit}"


def append_section(path: Path, title: str, section: str) -> None:
    """Add a section to a results file; the file is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# {title}\n\nFormat and words: [README](../README.md). Newest last.\n"
    before = path.read_text(encoding="utf-8") if path.exists() else head
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(f"{before}\n{section}", encoding="utf-8")
    os.replace(unfinished, path)


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _extra(timing: Timing, headers: Sequence[str]) -> list[str]:
    """The cells that a rival brings itself."""
    cells = {} if timing.failure else timing.rival.extra
    return [cells[name](timing.median_s) if name in cells else NO_VALUE for name in headers]


def _number(value: float) -> str:
    """Three digits or more, never an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
