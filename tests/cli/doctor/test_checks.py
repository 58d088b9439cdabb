"""Each check of `varlit doctor` in each of its verdicts, by numbers that are put in."""

from pathlib import Path

import pytest

from varlit.cli.doctor import checks
from varlit.cli.doctor.checks import GIB, Memory
from varlit.cli.doctor.findings import Finding

RUNS = Path("runs")
PARTS = {"checkpoints": 6 * GIB, "token cache": 2 * GIB, "pictures": 0.0}
STEP = Memory(states=2 * GIB, per_image=GIB, num_images=6)  # 8 GiB

CASES: list[tuple[str, Finding, tuple[str, ...]]] = [
    ("ok", checks.check_room(PARTS, 100 * GIB, RUNS), ("8.0 GiB", "100.0 GiB", "token cache 2.0")),
    ("warn", checks.check_room(PARTS, 9 * GIB, RUNS), ("9.0 GiB free", "--root")),
    ("fix", checks.check_room(PARTS, 7 * GIB, RUNS), ("7.0 GiB free", "--root")),
    ("ok", checks.check_files(500, 100_000, RUNS), ("500", "100,000")),
    ("ok", checks.check_files(500, None, RUNS), ("counts none",)),
    ("warn", checks.check_files(500, 1_000, RUNS), ("1,000 inodes", "--root")),
    ("fix", checks.check_files(500, 499, RUNS), ("499 inodes", "remove small files")),
    ("ok", checks.check_writing(RUNS, "", False), ("written",)),
    ("warn", checks.check_writing(RUNS, "", True), ("would go on", "--name")),
    ("fix", checks.check_writing(RUNS, "read-only file system", False), ("read-only", "--root")),
    ("ok", checks.check_memory(STEP, 80 * GIB, "m", "free", False), ("8.0 GiB", "80.0 GiB")),
    ("warn", checks.check_memory(STEP, 9 * GIB, "m", "free", False), ("batches 2",)),
    ("fix", checks.check_memory(STEP, 7 * GIB, "m", "free", False), ("7.0 GiB", "batches 2")),
    ("fix", checks.check_memory(STEP, 2 * GIB, "m", "free", False), ("not one", "--trainer fsdp")),
    ("fix", checks.check_memory(STEP, 2 * GIB, "m", "free", True), ("not one", "more GPUs")),
    ("fix", checks.check_memory(Memory(GIB, 0.0, 0), 1, "m", "free", False), ("--mem",)),
    ("ok", checks.check_cores(8, 12, 128), ("104", "128 cores")),
    ("ok", checks.check_cores(2, 0, 1), ("1 cores",)),
    ("warn", checks.check_cores(8, 12, 64), ("104", "64 cores", "--data.num_workers 7")),
    ("fix", checks.check_cores(1, 12, 2), ("13", "2 cores", "--data.num_workers 1")),
    ("ok", checks.check_limits(8, 64, 64.0, 2), ("64 of 64", "2 NUMA nodes")),
    ("warn", checks.check_limits(1, 64, 6.5, 1), ("6.5 of 64", "OMP_NUM_THREADS=6")),
    ("fix", checks.check_limits(8, 64, 4.0, 1), ("4 of 64", "--cpus-per-task")),
    ("ok", checks.check_shared(0, 0), ("no workers",)),
    ("ok", checks.check_shared(GIB, 8 * GIB), ("1.0 GiB", "8.0 GiB")),
    ("warn", checks.check_shared(GIB, None), ("no /dev/shm",)),
    ("warn", checks.check_shared(GIB, 1.1 * GIB), ("1.1 GiB", "--shm-size")),
    ("fix", checks.check_shared(GIB, 64 * 2**20), ("64 MiB", "--shm-size")),
    ("ok", checks.check_open_files(300, 1024, 4096), ("300", "1,024")),
    ("warn", checks.check_open_files(1000, 1024, 4096), ("ulimit -n 2000",)),
    ("fix", checks.check_open_files(2000, 1024, 4096), ("ulimit -n 4000",)),
    ("fix", checks.check_open_files(3000, 1024, 4096), ("hard limit",)),
    ("ok", checks.check_clock(2026, 0.1), ("2026", "0 s")),
    ("warn", checks.check_clock(2026, -60.0), ("60 s", "file server")),
    ("warn", checks.check_clock(2026, None), ("not compared",)),
    ("fix", checks.check_clock(2026, 7200.0), ("7200 s", "file server")),
    ("fix", checks.check_clock(1970, 0.0), ("1970", "timedatectl")),
    ("ok", checks.check_peers(1, False, []), ("one device",)),
    ("ok", checks.check_peers(8, True, []), ("8 GPUs", "NCCL")),
    ("warn", checks.check_peers(4, True, [(0, 2), (1, 3)]), ("0-2, 1-3", "nvidia-smi topo -m")),
    ("fix", checks.check_peers(2, False, []), ("no NCCL", "make setup")),
]


@pytest.mark.parametrize(("verdict", "finding", "words"), CASES, ids=lambda x: str(x)[:40])
def test_a_verdict_comes_with_numbers_and_cure(
    verdict: str, finding: Finding, words: tuple[str, ...]
) -> None:
    assert finding[0] == verdict, finding
    for word in words:
        assert word in finding[2], finding


def test_every_check_was_seen_in_every_verdict() -> None:
    names = ("room", "files", "writing", "m", "workers", "cores", "shared", "open files", "clock")
    seen = {(finding[1], finding[0]) for _, finding, _ in CASES}
    assert seen == {(n, v) for n in (*names, "peers") for v in ("ok", "warn", "fix")}


@pytest.mark.parametrize("there_gib", [3.0, 4.0, 5.75, 7.9])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_the_cure_of_memory_is_one(there_gib: float, num_parts: int) -> None:
    memory = Memory(2 * GIB, GIB / 4, 48, num_parts)
    text = checks.check_memory(memory, there_gib * GIB, "m", "free", False)[2]
    parts = int(text.rpartition(" ")[2])
    assert 48 * num_parts % parts == 0, "parts of a batch are equal"
    again = Memory(memory.states, memory.per_image, 48 * num_parts // parts, parts)
    assert checks.check_memory(again, there_gib * GIB, "m", "free", False)[0] == "ok"
