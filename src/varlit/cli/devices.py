"""What a run computes on: `--gpus auto|N` turned into the Trainer's settings, and said in a line.

Only settings that are still undecided are filled in, so an explicit `--trainer.accelerator`,
`--trainer.devices` or hardware file wins over `--gpus`.
"""

import warnings
from dataclasses import dataclass
from typing import Any

from varlit.errors import UserError


@dataclass(frozen=True)
class Placement:
    """The Trainer's devices and precision, and the line that tells the user why."""

    accelerator: str
    devices: int | str | list[int]
    precision: str
    remark: str = ""


def place(gpus: str, trainer: dict[str, Any], precision_is_explicit: bool) -> Placement:
    """Decide on devices and precision.

    Args:
        gpus: The value of `--gpus`: `auto`, or a number, 0 meaning the CPU.
        trainer: The resolved `trainer` settings; `auto` means undecided.
        precision_is_explicit: Whether the user typed `--trainer.precision`.

    Raises:
        UserError: If `gpus` is not a number, or more than there are.
    """
    import torch

    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    precision = str(trainer.get("precision") or "32-true")
    remarks = []
    if accelerator != "auto" or devices != "auto":
        if gpus != "auto":
            warnings.warn(
                f"--gpus {gpus} is ignored: trainer.accelerator {accelerator} and "
                f"trainer.devices {devices} were set",
                stacklevel=2,
            )
    else:
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        wanted = _number_of_gpus(gpus, present)
        if wanted:
            accelerator, devices = "gpu", wanted
        else:
            accelerator, devices = "cpu", 1
            remarks.append("no GPU found: running on the CPU" if gpus != "0" else "on the CPU")
    on_gpu = accelerator in {"gpu", "cuda"} or (accelerator == "auto" and torch.cuda.is_available())
    if "16" in precision and not precision_is_explicit:
        if not on_gpu:
            remarks.append(f"in 32-true instead of {precision}")
            precision = "32-true"
        elif (
            "bf16" in precision
            and torch.cuda.is_available()
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            remarks.append(f"this GPU has no bf16: in 32-true instead of {precision}")
            precision = "32-true"
    return Placement(accelerator, devices, precision, ", ".join(remarks))


def _number_of_gpus(gpus: str, present: int) -> int:
    """Read `--gpus`; with no GPU at all any number falls back to the CPU."""
    if gpus == "auto":
        return present
    if not gpus.isdecimal():
        raise UserError(f"--gpus wants `auto` or a number (0 = CPU); got `{gpus}`")
    wanted = int(gpus)
    if present and wanted > present:
        raise UserError(
            f"--gpus {wanted}, but this machine has {present}; try --gpus {present}, or --gpus auto"
        )
    return min(wanted, present)
