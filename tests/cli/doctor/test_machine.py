"""What `varlit doctor` reads of a machine, from folders laid out like /proc and /sys."""

import os
from pathlib import Path

import pytest

from varlit.cli.doctor import machine
from varlit.cli.doctor.machine import Limits

GIB = 2**30


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_limits_of_this_group_and_of_those_above_count(tmp_path: Path) -> None:
    top, own = "sys/fs/cgroup", "sys/fs/cgroup/slurm/job7"
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job7\n",
            f"{own}/memory.max": "max\n",
            f"{own}/cpu.max": "250000 100000\n",
            f"{top}/slurm/memory.max": f"{8 * GIB}\n",
            f"{top}/slurm/memory.current": f"{3 * GIB}\n",
            f"{top}/slurm/cpu.max": "max 100000\n",
        },
    )
    assert machine.read_limits(root) == Limits(5 * GIB, 2.5)


def test_limits_inside_a_container_lie_at_the_top(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"sys/fs/cgroup/memory.max": f"{GIB}\n"})
    assert machine.read_limits(root).memory_bytes == GIB, "nothing says which group is ours"
    lay_out(root, {"proc/self/cgroup": "0::/../../host/path\n"})
    assert machine.read_limits(root).memory_bytes == GIB


def test_limits_of_version_1_are_read(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    files = {
        "proc/self/cgroup": "5:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n",
        f"{top}/memory/docker/a/memory.limit_in_bytes": f"{4 * GIB}\n",
        f"{top}/memory/memory.limit_in_bytes": "9223372036854771712\n",
        f"{top}/cpu/docker/a/cpu.cfs_quota_us": "150000\n",
        f"{top}/cpu/docker/a/cpu.cfs_period_us": "100000\n",
        f"{top}/cpu/cpu.cfs_quota_us": "-1\n",
    }
    assert machine.read_limits(lay_out(tmp_path, files)) == Limits(4 * GIB, 1.5)


def test_no_limits_are_none(tmp_path: Path) -> None:
    assert machine.read_limits(tmp_path) == Limits(None, None)
    assert machine.available_memory(Limits(None, None), tmp_path) is None
    assert machine.count_numa_nodes(tmp_path) == 1


def test_the_smaller_of_machine_and_container_counts(tmp_path: Path) -> None:
    lay_out(tmp_path, {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {2 * GIB // 1024} kB\n"})
    assert machine.available_memory(Limits(None, None), tmp_path) == 2 * GIB
    assert machine.available_memory(Limits(float(GIB), None), tmp_path) == GIB
    assert machine.allowed_cores(Limits(None, 0.5)) == 0.5
    assert machine.allowed_cores(Limits(None, None)) >= 1


def test_numa_nodes_are_counted(tmp_path: Path) -> None:
    for name in ("node0", "node1", "power"):
        (tmp_path / "sys/devices/system/node" / name).mkdir(parents=True)
    assert machine.count_numa_nodes(tmp_path) == 2


def test_writing_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    writing = machine.try_writing(tmp_path / "runs" / "d16")
    assert (writing.place, writing.reason) == (tmp_path, "")
    assert writing.skew_s is not None
    assert abs(writing.skew_s) < 3600
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    writing = machine.try_writing(tmp_path / "runs")
    assert writing.reason == "not a directory"
    assert writing.skew_s is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_rights_are_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert machine.try_writing(tmp_path / "runs").reason == "permission denied"


def test_a_clock_that_is_off_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = machine.time.time()
    monkeypatch.setattr(machine.time, "time", lambda: now + 1000)
    skew_s = machine.try_writing(tmp_path).skew_s
    assert skew_s is not None
    assert -1100 < skew_s < -900


def test_limits_of_open_files_are_numbers() -> None:
    soft, hard = machine.open_files_limit()
    assert 0 < soft <= hard


def test_a_folder_that_is_not_there_has_no_room(tmp_path: Path) -> None:
    assert machine.free_bytes(tmp_path / "nowhere") is None
    assert (machine.free_bytes(tmp_path) or 0) > 0
