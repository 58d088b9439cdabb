"""What the rounding of an encoding depends on: fixed while it runs, and written down.

A token changes where two codes are nearly as near, so a cache has the same bytes on any number of
processes only if every process rounds alike. Batches are fixed by `EncodingBatches`; here are the
threads of a CPU (with another number a convolution sums in another order) and cuDNN's algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import PIL
import torch


def describe_encoder(device: torch.device, num_threads: int) -> dict[str, Any]:
    """Return what the rounding of an encoding under `fixed_rounding` depends on, as plain data."""
    encoder: dict[str, Any] = {
        "dtype": "float32",
        "tf32": False,
        "deterministic": True,
        "torch": str(torch.__version__),
        "pillow": PIL.__version__,
    }
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        cudnn = torch.backends.cudnn.version()
        return encoder | {"device": f"cuda {name}", "cuda": torch.version.cuda, "cudnn": cudnn}
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return encoder | {"device": f"cpu {capability}", "threads": num_threads}
    return encoder | {"device": device.type}


@contextmanager
def fixed_rounding(num_threads: int) -> Iterator[None]:
    """Compute with so many threads on the CPU and cuDNN's deterministic algorithms, then as before.

    The search itself is in strict fp32 wherever it runs, see `varlit.models.vqvae.VQVAE.encode`.
    """
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.set_num_threads(threads)
