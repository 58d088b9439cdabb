"""Whether a machine is enough for a run: each check takes numbers and gives one finding.

Nothing is looked up here, so that every verdict can be seen on any machine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from varlit.cli.doctor.findings import Finding, Verdict

GIB = 2**30
FULL_SHARE = 0.8
"""Above this share of what there is, a check warns: estimates are off, and others use it too."""
CROWDED = 4
"""Processes a core beyond which reading starves training."""
SANE_YEARS = range(2025, 2100)
SKEW_WARN_S, SKEW_FIX_S = 5, 3600
FEW_FILES_LEFT = 1000
MOST_PARTS_TRIED = 10_000
ROOT = "--root"


@dataclass(frozen=True)
class Memory:
    """What one process needs, in bytes, and how many images it takes at a time.

    Attributes:
        num_parts: Of a batch, one after another: trainer.accumulate_grad_batches.
    """

    states: float
    per_image: float
    num_images: int
    num_parts: int = 1

    @property
    def needed(self) -> float:
        """At the peak of a step."""
        return self.states + self.per_image * self.num_images


def compare(needed: float, there: float) -> Verdict:
    """Tell whether there is enough: ok, most of it taken (warn), or too little (fix)."""
    if needed > there:
        return "fix"
    return "warn" if needed > FULL_SHARE * there else "ok"


def told_bytes(number: float) -> str:
    """Write a size as people do."""
    if number >= GIB / 10:
        return f"{number / GIB:,.1f} GiB"
    return f"{number / 2**20:,.0f} MiB" if number >= 2**20 else f"{number / 1024:,.0f} KiB"


def check_room(parts: Mapping[str, float], free: float, place: Path, flag: str = ROOT) -> Finding:
    """Compare what a run writes, in bytes by kind, with what is free; `flag` names the place."""
    needed = sum(parts.values())
    verdict = compare(needed, free)
    made_of = ", ".join(f"{name} {told_bytes(size)}" for name, size in parts.items() if size)
    text = f"needs {told_bytes(needed)} ({made_of}); {told_bytes(free)} free in {place}"
    cure = f"; free some, write elsewhere with {flag}, or keep less (checkpoint.*, cache.num_crops)"
    return verdict, "room", text + cure * (verdict != "ok")


def check_files(needed: int, free: int | None, place: Path) -> Finding:
    """Compare how many files a run makes with the inodes left; None where nothing counts them."""
    if free is None:
        return "ok", "files", f"needs {needed:,}; the file system of {place} counts none"
    verdict: Verdict = "warn" if free < needed + FEW_FILES_LEFT else "ok"
    if free < needed:
        verdict = "fix"
    text = f"needs {needed:,}; {free:,} inodes free in {place}"
    return verdict, "files", text + "; remove small files, or use --root" * (verdict != "ok")


def check_writing(place: Path, reason: str, has_checkpoint: bool, flag: str = ROOT) -> Finding:
    """Tell whether a folder of the run can be written; `reason` is why not, `flag` names it."""
    if reason:
        return "fix", "writing", f"{place}: {reason}; mend the rights, or write elsewhere: {flag}"
    if has_checkpoint:
        return "warn", "writing", f"{place} holds a run, which would go on; afresh: another --name"
    return "ok", "writing", f"a file was written in {place} and removed"


def check_memory(memory: Memory, there: float, subject: str, name: str, sharded: bool) -> Finding:
    """Compare a step's estimated peak with a GPU's memory, or with what is left of the RAM."""
    verdict = compare(memory.needed, there)
    images = f"{memory.num_images:,} images x {told_bytes(memory.per_image)}"
    made_of = f" (states {told_bytes(memory.states)}, {images})" if memory.num_images else ""
    text = f"needs about {told_bytes(memory.needed)}{made_of}; {told_bytes(there)} {name}"
    if verdict == "ok":
        return verdict, subject, text
    return verdict, subject, f"{text}; {_spare(memory, there, sharded)}"


def _spare(memory: Memory, there: float, sharded: bool) -> str:
    """Say what makes a step fit: fewer images at a time, else states spread over devices."""
    if not memory.num_images:
        return "end other programs, fewer --data.num_workers, or more memory (--mem)"
    left = FULL_SHARE * there - memory.states
    fitting = int(left // memory.per_image) if left > 0 else 0
    if fitting < 1:
        remedy = "more GPUs" if sharded else "--trainer fsdp (stage 2)"
        return f"not one image fits: {remedy}, a smaller model, or a larger device"
    least = -(-memory.num_images // fitting)
    tried = range(least, least + MOST_PARTS_TRIED)
    parts = next((n for n in tried if memory.num_images % n == 0), 0)  # all parts are equal
    if not parts:
        return "a smaller --data.batch_size"
    parts *= memory.num_parts
    return f"the same global batch in {parts} parts: --trainer.accumulate_grad_batches {parts}"


def check_cores(num_processes: int, num_workers: int, cores: float) -> Finding:
    """Compare training processes and their workers with the cores that may be used."""
    needed = num_processes * (1 + num_workers)
    text = f"{num_processes} training x (1 + {num_workers} workers) = {needed}; {cores:g} cores"
    fitting = max(0, math.floor(cores / num_processes) - 1)
    cure = f"; --data.num_workers {fitting}"
    if num_workers and needed > CROWDED * cores:
        return "fix", "workers", f"{text}: they would starve training{cure}"
    if num_workers and needed > cores:
        return "warn", "workers", text + cure
    return "ok", "workers", text


def check_limits(num_processes: int, present: int, allowed: float, num_nodes: int) -> Finding:
    """Compare the machine's cores with those that a container or a scheduler leaves us.

    Args:
        num_processes: Training processes.
        present: Cores of the machine.
        allowed: Cores by affinity and cpu.max.
        num_nodes: NUMA nodes.
    """
    nodes = f"{num_nodes} NUMA node{'s' if num_nodes > 1 else ''}"
    text = f"{allowed:g} of {present} cores may be used, {nodes}"
    if allowed < num_processes:
        return (
            "fix",
            "cores",
            f"{text}: less than one for each of {num_processes} processes; "
            "ask for more (--cpus-per-task, --cpus)",
        )
    if allowed < present:
        return (
            "warn",
            "cores",
            f"{text}: limited by affinity or cpu.max; set OMP_NUM_THREADS="
            f"{max(1, math.floor(allowed / num_processes))}, or ask for more",
        )
    return "ok", "cores", text


def check_shared(needed: float, there: float | None) -> Finding:
    """Compare batches on their way from workers with /dev/shm; None where there is none."""
    if not needed:
        return "ok", "shared", "no workers, so no batches in /dev/shm"
    if there is None:
        return "warn", "shared", f"needs {told_bytes(needed)}; no /dev/shm to look at here"
    verdict = compare(needed, there)
    text = f"batches of all workers take {told_bytes(needed)}; {told_bytes(there)} free in /dev/shm"
    cure = "; docker run --shm-size (or --ipc=host), or fewer --data.num_workers"
    return verdict, "shared", text + cure * (verdict != "ok")


def check_open_files(needed: int, soft: int, hard: int) -> Finding:
    """Compare files that a process holds open with its limit (ulimit -n)."""
    verdict = compare(needed, soft)
    text = f"about {needed:,} at once; the limit is {soft:,}"
    if verdict == "ok":
        return verdict, "open files", text
    cure = f"ulimit -n {2 * needed}" if 2 * needed <= hard else "ask for a higher hard limit"
    return verdict, "open files", f"{text}; {cure}"


def check_clock(year: int, skew_s: float | None) -> Finding:
    """Check that the clock is sane and agrees with the times that files get.

    Args:
        year: By the machine's clock.
        skew_s: Time of a new file less the clock; None where none could be written.
    """
    if year not in SANE_YEARS:
        return "fix", "clock", f"it says {year}; set the time (timedatectl set-ntp true)"
    if skew_s is None:
        return (
            "warn",
            "clock",
            f"{year}; not compared with file times, for nothing could be written",
        )
    skew = abs(skew_s)
    verdict: Verdict = "fix" if skew > SKEW_FIX_S else ("warn" if skew > SKEW_WARN_S else "ok")
    text = f"{year}; file times are {skew:.0f} s off"
    return (
        verdict,
        "clock",
        text + "; set the time of this machine or of the file server" * (verdict != "ok"),
    )


def check_peers(num_gpus: int, has_nccl: bool, apart: Sequence[tuple[int, int]]) -> Finding:
    """Check that several GPUs can talk.

    Args:
        num_gpus: GPUs of the run.
        has_nccl: Whether torch was built with NCCL.
        apart: Pairs that cannot read each other's memory.
    """
    if num_gpus < 2:
        return "ok", "peers", "one device, which talks to none"
    if not has_nccl:
        return "fix", "peers", f"{num_gpus} GPUs, but this torch has no NCCL; {_OTHER_TORCH}"
    if apart:
        pairs = ", ".join(f"{a}-{b}" for a, b in apart[:3]) + ", ..." * (len(apart) > 3)
        return (
            "warn",
            "peers",
            (
                f"GPUs {pairs} do not reach each other's memory: gradients go through the RAM, "
                "slower; see nvidia-smi topo -m; in a VM, IOMMU or ACS may be in the way"
            ),
        )
    return "ok", "peers", f"{num_gpus} GPUs reach each other, NCCL is there"


_OTHER_TORCH = "install torch's build for CUDA: rm -rf .venv && make setup"
