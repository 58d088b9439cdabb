"""The small parser of verbs that are plain functions: short errors, the nearest known flag."""

import argparse
import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from varlit.errors import UserError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")


class VerbParser(argparse.ArgumentParser):
    """argparse that raises `UserError` in place of its usage dump."""

    def __init__(self, verb: str, description: str) -> None:
        """Make the parser of `varlit <verb>`."""
        super().__init__(
            prog=f"varlit {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the message, with the flag that may have been meant."""
        unknown = message.rpartition("unrecognized arguments: ")[2].split("=")[0].split(" ")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown, flags, 1) if "unrecognized" in message else []
        hint = f"did you mean `{near[0]}`?" if near else f"see {self.prog} --help"
        raise UserError(f"{message}; {hint}")


def check_writable(path: Path) -> Path:
    """Refuse an output file that cannot be written before any work is done.

    Raises:
        UserError: If it is a folder, or not a PNG, or its folder cannot be made or written to.
    """
    if path.is_dir() or path.suffix.lower() != ".png":
        raise UserError(f"--out wants the name of a .png file; got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot make the folder {path.parent}: {reason}; give another --out"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(
            f"no right to write in the folder {path.parent}; mend its rights or give another --out"
        )
    return path


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over a file that is read, by whatever name.

    Raises:
        UserError: If an output is one of the inputs; None is no file.
    """
    given = [path for path in inputs if path is not None and path.exists()]
    for output in outputs:
        if output.exists() and any(output.samefile(path) for path in given):
            raise UserError(f"{output} is read here and would be overwritten; give another --out")


def check_seeds(first: int, count: int, limit: int = 2**63) -> None:
    """Refuse seeds that leave their range.

    Args:
        first: What was given as --seed.
        count: How many are counted up from it.
        limit: Below this they lie, and not below its negative.

    Raises:
        UserError: If one does not.
    """
    if not -limit <= first <= limit - count:
        raise UserError(
            f"--seed: got {first}, expected {-limit}..{limit - count}, so that all {count} fit"
        )


def pick_device(name: str) -> str:
    """Resolve `auto` to the GPU where there is one.

    Raises:
        UserError: If there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no GPU was found here; take --device cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: {reason}; take auto, cpu or cuda") from error
    return name


def takes_bf16(precision: str, device: str) -> bool:
    """Whether to draw in bf16: where asked for, or by `auto` on a GPU that has it."""
    import torch

    if precision == "auto" and device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def drawing_dtype(precision: str, device: str) -> "torch.dtype | None":
    """What a transformer's weights are cast to before it draws; None leaves them as they are."""
    import torch

    return torch.bfloat16 if takes_bf16(precision, device) else None


class Count:
    """How far a loop has come: one live line on a terminal, its end alone in a file."""

    def __init__(self, what: str, total: int) -> None:
        """Count to `total`."""
        self.what, self.total, self.done = what, total, 0

    def reach(self, done: int) -> None:
        """Tell that `done` are done."""
        self.done = done
        is_end = done >= self.total
        if is_end or sys.stdout.isatty():
            start = "\r" if sys.stdout.isatty() else ""
            print(
                f"{start}{self.what} {done:,}/{self.total:,}",
                end="\n" if is_end else "",
                flush=True,
            )
