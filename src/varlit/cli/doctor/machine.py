"""What a machine has: disk, memory, cores, limits, clock and GPUs, as plain numbers.

Standard library only at the top; what is not there is None and stops nothing.
"""

import os
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
NO_LIMIT = 2**60
"""From here on a number means none, as version 1 of cgroups writes it."""


@dataclass(frozen=True)
class Writing:
    """What came of writing a file where a run will write."""

    place: Path
    """The folder, or the nearest one above it that exists."""
    reason: str
    """Why it cannot be written; empty where it can."""
    skew_s: float | None
    """The new file's time less the clock."""


@dataclass(frozen=True)
class Limits:
    """What a container or a scheduler leaves us; None is no limit."""

    memory_bytes: float | None
    """Of memory.max, what is not in use."""
    cores: float | None


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    free_bytes: int


def try_writing(folder: Path) -> Writing:
    """Write a file and remove it: rights alone do not tell of read-only file systems or quotas."""
    place = folder.absolute()
    while not os.path.exists(place):  # Path.exists raises on what may not be looked at
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".varlit-doctor-") as file:
            before_s = time.time()
            file.write(b"x")
            file.flush()
            return Writing(place, "", os.stat(file.name).st_mtime - before_s)
    except OSError as error:
        return Writing(place, (error.strerror or str(error)).lower(), None)


def free_bytes(place: Path) -> int | None:
    """Return what is free on the file system of a folder; None where there is no such folder."""
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def is_other_disk(first: Path, second: Path) -> bool:
    """Whether two folders that exist lie on different file systems."""
    return os.stat(first).st_dev != os.stat(second).st_dev


def free_files(place: Path) -> int | None:
    """Return the inodes that are left; None where the file system does not count them."""
    found = os.statvfs(place)
    return found.f_favail if found.f_files else None


def open_files_limit() -> tuple[int, int]:
    """Return the soft and the hard limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    return NO_LIMIT if soft == unlimited else soft, NO_LIMIT if hard == unlimited else hard


def allowed_cores(limits: Limits) -> float:
    """Return the cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(float(allowed or 1), limits.cores or float("inf"))


def count_numa_nodes(root: Path = Path("/")) -> int:
    """Count the NUMA nodes; at least one."""
    return max(1, len(list((root / "sys/devices/system/node").glob("node[0-9]*"))))


def available_memory(limits: Limits, root: Path = Path("/")) -> float | None:
    """Return the RAM that can still be had, by the machine and by the container."""
    known = [] if limits.memory_bytes is None else [limits.memory_bytes]
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            known.append(1024.0 * int(line.split()[1]))
    return min(known, default=None)


def read_limits(root: Path = Path("/")) -> Limits:
    """Read the limits of this process's cgroup and of all above it, of either version.

    Args:
        root: In place of `/`, for tests.
    """
    memory: list[float] = []
    cores: list[float] = []
    for folder in _groups(root):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and limit < NO_LIMIT:
            memory.append(max(0.0, limit - (used or 0.0)))
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us").strip()
        period = period or _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores.append(int(quota) / int(period))
    return Limits(min(memory, default=None), min(cores, default=None))


def _groups(root: Path) -> list[Path]:
    """The folders of this process's cgroups, up to the top."""
    top, folders = root / "sys/fs/cgroup", []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(",") if controllers else [""]:
            folder = top / controller / path.strip("/")
            # Inside a container the path may be the host's, and the limits lie at the top.
            folders += [f for f in (folder, *folder.parents) if f.is_relative_to(top)]
    return list(dict.fromkeys([*folders, top]))


def _number(path: Path) -> float | None:
    text = _read(path).strip()
    return float(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def cards() -> list[Card]:
    """Return the GPUs with what is free on each."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = torch.cuda.get_device_properties(index).name
        found.append(Card(name, torch.cuda.mem_get_info(index)[0]))
    return found


def has_nccl() -> bool:
    """Whether torch can let GPUs talk."""
    from torch import distributed

    return distributed.is_available() and distributed.is_nccl_available()


def pairs_apart(num_gpus: int) -> list[tuple[int, int]]:
    """Return the pairs of GPUs that cannot read each other's memory."""
    import torch

    pairs = [(a, b) for a in range(num_gpus) for b in range(a + 1, num_gpus)]
    return [(a, b) for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
