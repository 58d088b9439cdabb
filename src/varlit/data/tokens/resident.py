"""Whole splits of a cache in memory, of the machine or of the GPU, with the same batches."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from varlit.data.order import BatchIndex
from varlit.data.tokens.reader import TokenDataset
from varlit.errors import UserError

Resident = Literal["disk", "ram", "device"]
FULL_SHARE = 0.7
"""Above this share of the free memory the rest of the training may not find its place."""
ROWS_AT_ONCE = 65_536


class ResidentTokens:
    """A split in one array: batches of it, or of the rows from which `gather` makes them.

    Args:
        dataset: The split on disk.
        split: Name of the split.
        device: Where the tokens lie; None is RAM. From the loader to a device travel rows and no
            batches, a few bytes for each image.
    """

    def __init__(self, dataset: TokenDataset, split: str, device: torch.device | None) -> None:
        self.dataset, self.split, self.hands_out_rows = dataset, split, device is not None
        device = device or torch.device("cpu")
        shape = len(dataset), dataset.num_crops, dataset.num_tokens
        # torch indexes int16 everywhere and uint16 hardly anywhere; the bits are the same.
        self.tokens = torch.empty(shape, dtype=torch.int16, device=device)  # N, crops, L
        for start in range(0, len(dataset), ROWS_AT_ONCE):
            rows = dataset.rows(start, start + ROWS_AT_ONCE)
            self.tokens[start : start + len(rows)] = torch.from_numpy(rows.view(np.int16))
        self.labels = torch.from_numpy(dataset.labels.astype(np.int64)).to(device)  # N

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Return a batch, or its rows and the crop of each."""
        rows, crops = torch.from_numpy(index.ids), torch.from_numpy(self.dataset.crops(index))
        if self.hands_out_rows:
            return {"row": rows, "crop": crops, "split": self.split}
        return dict(self.gather(rows, crops))

    def gather(self, rows: Tensor, crops: Tensor) -> dict[str, Tensor]:
        """Return the batch, as `TokenDataset` does, on this device."""
        place = self.tokens.device
        rows, crops = rows.to(place), crops.to(place)
        tokens = self.tokens[rows, crops].to(torch.int64).bitwise_and_(0xFFFF)  # B, L
        return {"tokens": tokens, "label": self.labels[rows]}


def check_fits(num_bytes: int, device: torch.device, num_processes: int) -> None:
    """Check that a cache finds room before minutes are spent on reading it.

    Args:
        num_bytes: Size of the tokens.
        device: Where they shall lie.
        num_processes: Processes of this machine, each of which has its own copy in RAM.

    Raises:
        UserError: If they are larger than what is free.
    """
    on_cpu = device.type == "cpu"
    needed = num_bytes * (num_processes if on_cpu else 1)
    free = free_ram_bytes() if on_cpu else _free_device_bytes(device)
    if free is None or needed <= FULL_SHARE * free:
        return
    copies = f" x {num_processes} processes" if on_cpu and num_processes > 1 else ""
    where = "RAM" if on_cpu else f"memory of {device}"
    sizes = f"{num_bytes / 1e9:.1f} GB of tokens{copies}, {free / 1e9:.1f} GB of {where} are free"
    remedy = "set data.resident to disk, a memory map that all processes share"
    if needed > free:
        raise UserError(f"the token cache does not fit: {sizes}; {remedy}.")
    warnings.warn(f"the token cache fills most of the memory: {sizes}; or {remedy}.", stacklevel=2)


def free_ram_bytes() -> int | None:
    """Return how much RAM can still be had; None where the system does not tell."""
    try:
        content = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", content, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_device_bytes(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
