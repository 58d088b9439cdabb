"""Peak memory of a rival that runs alone.

On CUDA: what torch's allocator held at most, above what it held before the rival was set up. On a
CPU: the peak of resident memory (VmHWM) of a fresh process, above what it held after its imports.
Weights, gradients, moments, activations and workspaces are in both.
"""

import gc
import resource
import subprocess
import sys
from pathlib import Path

import torch

from harness.stopwatch import Rival

PROCESS_STATUS = Path("/proc/self/status")
NUM_RUNS = 2  # the second meets the gradients and moments that the first left


def peak_bytes(rival: Rival, device: torch.device) -> int:
    """Set up a rival in this process, run it twice, and return what it took at most.

    On a CPU call it in a process that did nothing else: `peak_bytes_alone` does.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rival.build()(NUM_RUNS)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = resident_bytes()
    rival.build()(NUM_RUNS)
    return peak_resident_bytes() - before


def peak_bytes_alone(script: Path, words: list[str], name: str) -> int:
    """Run a benchmark's script in a process of its own that measures one rival and says so.

    Args:
        script: The benchmark.
        words: Its command line, to which `--memory_of NAME` is added.
        name: The rival.
    """
    command = [sys.executable, str(script), *words, "--memory_of", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; its peak where the system does not say."""
    if PROCESS_STATUS.exists():
        return _status_bytes("VmRSS")
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Most memory of this process that was in RAM at once."""
    # Not getrusage on Linux: a child's ru_maxrss starts at its parent's size.
    if PROCESS_STATUS.exists():
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int:
    for line in PROCESS_STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{PROCESS_STATUS} has no {field}")
