"""What a run computes on: `--gpus auto|N` turned into the Trainer's settings, and said in a line.

Only settings that are still undecided are filled in, so an explicit `--trainer.accelerator`,
`--trainer.devices` or hardware file wins over `--gpus`. What cannot work is refused here, before
anything is built.
"""

import warnings
from dataclasses import dataclass
from typing import Any

from varlit.errors import UserError

# By Lightning's long and short names.
TRAINING_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")


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
        UserError: If `gpus` is not a number, or more than there are, or the Trainer is to take a
            GPU where there is none.
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
        _require_gpu(accelerator)
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


def check_training(stage: str, trainer: dict[str, Any]) -> None:
    """Refuse settings of the Trainer that a fit would ignore or stumble over later.

    Args:
        stage: Name of the stage.
        trainer: The resolved `trainer` settings.

    Raises:
        UserError: With the setting to use in its place.
    """
    for setting in ("gradient_clip_val", "gradient_clip_algorithm"):
        if trainer.get(setting) is not None:
            raise UserError(
                f"trainer.{setting} does not work here; set --model.optim.grad_clip, a norm (0 = "
                "off), in its place"
            )
    if trainer.get("log_every_n_steps") == 0:
        raise UserError(
            "trainer.log_every_n_steps must be 1 or more, got 0; for few scalars set it to a large "
            "number"
        )
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if steps == -1 and (epochs == -1 or (epochs is None and trainer.get("max_time") is not None)):
        raise UserError("schedules need a length: set --trainer.max_epochs or --trainer.max_steps")
    precision = str(trainer.get("precision") or "32-true")
    if precision not in TRAINING_PRECISIONS:
        # fp16 would have scaled gradients clipped; true bf16 breaks the search for codes.
        raise UserError(
            f"stage {stage} trains in 32-true or bf16-mixed; got trainer.precision {precision}"
        )


def wants_ddp(strategy: Any, devices: int | str | list[int], num_nodes: int) -> bool:
    """Whether a run is data-parallel without having said how."""
    if strategy == "auto":
        several = len(devices) if isinstance(devices, list) else devices
        return num_nodes > 1 or several not in (0, 1, "0", "1", "auto")
    return bool(strategy == "ddp")


def _require_gpu(accelerator: str) -> None:
    """Stop where Lightning would with a traceback; its `gpu` may also be Apple's."""
    import torch

    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu":
        has_gpu = has_gpu or torch.backends.mps.is_available()
    if accelerator in {"gpu", "cuda"} and not has_gpu:
        raise UserError(
            f"trainer.accelerator {accelerator} (`--trainer gpu1`, `ddp` and `fsdp` set it), but "
            "no GPU was found here; leave it out: --gpus auto falls back to the CPU"
        )


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
