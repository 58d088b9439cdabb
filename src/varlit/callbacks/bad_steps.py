"""What is kept of a step that was skipped: a line for the user, and a file to replay it from."""

from __future__ import annotations

import copy
import errno
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from varlit.callbacks.record import run_dir
from varlit.data.loader import ResumableLoader
from varlit.disks import may_be_lost, whole_file
from varlit.errors import UserError
from varlit.metrics.ranks import concatenate_over_ranks
from varlit.training.guard import Reading, StepRecord
from varlit.training.stage import StageModule

KEPT_FILES = 10  # of each process, the newest
SHOWN = 3
SHOWN_IDS = 8


@dataclass(frozen=True)
class Part:
    """What one part of an accumulated step was given, in this process."""

    batch: Mapping[str, Any]
    place: tuple[int, int]  # epoch, and batch of it
    seed: int


@dataclass(frozen=True)
class BadStep:
    """A skipped step in a few words; the numbers are in the file."""

    step: int
    terms: list[str]
    weights: list[str]  # those whose gradient was not finite
    num_weights: int
    ids: list[int]
    broken_ids: list[int]  # images that hold NaN or Inf themselves, of all processes
    file: Path

    def describe(self) -> str:
        """What was not finite, in which images."""
        found = [f"{name} is NaN or Inf" for name in self.terms[:SHOWN]]
        if self.broken_ids:
            broken = [str(number) for number in self.broken_ids]
            found.insert(0, f"ids {some(broken, SHOWN_IDS)} hold NaN or Inf themselves")
        if self.weights:
            names = some(self.weights, SHOWN)
            found.append(f"so are gradients of {len(self.weights)} of {self.num_weights}: {names}")
        found.append(f"batch: ids {some([str(number) for number in self.ids], SHOWN_IDS)}")
        return "; ".join(found)


def note_part(trainer: Trainer, pl_module: StageModule, batch: Any, batch_idx: int) -> Part:
    """Remember what a part is given; the batch is kept as it is, and not copied."""
    place, loader = (trainer.current_epoch, batch_idx), trainer.train_dataloader
    if isinstance(loader, ResumableLoader):
        state = loader.state_dict()
        place = state["epoch"], state["samples_seen"] // state["step_samples"] - 1
    return Part(batch, place, pl_module.draw_seed(batch_idx))


def keep_evidence(
    trainer: Trainer,
    pl_module: StageModule,
    record: StepRecord,
    reading: Reading,
    parts: list[Part],
) -> BadStep:
    """Find out what was broken in a step, and write it down; every process must call it.

    The first process writes a file, and those in which a loss was broken.
    """
    weights = [name for gradients in record.gradients for name in gradients.broken()]
    broken = torch.tensor([n for part in parts for n in _broken_ids(trainer, part)])
    bad = BadStep(
        step=record.step,
        terms=record.broken_terms(),
        weights=weights,
        num_weights=sum(len(gradients.weights) for gradients in record.gradients),
        ids=[number for part in parts for number in _ids(trainer, part)],
        broken_ids=concatenate_over_ranks(broken.long()[:, None]).flatten().tolist(),
        file=_file(trainer, record.step),
    )
    if reading.is_own or trainer.is_global_zero:
        with may_be_lost("files of bad steps", bad.file):
            _write(bad.file, _content(trainer, pl_module, record, reading, parts, bad))
    return bad


def read_bad_step(path: Path) -> dict[str, Any]:
    """Read a file of `keep_evidence`.

    Raises:
        UserError: If it is none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; runs keep them as bad-step-*.pt") from error
    except Exception as error:  # in a damaged pickle any instruction may go wrong in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # of the disk; EINVAL is of a place that a damaged file names
        raise UserError(f"{path} is damaged, or no bad-step-*.pt of a run") from error
    if not isinstance(content, dict) or "parts" not in content:
        raise UserError(f"{path} is no bad-step-*.pt of a run; give another file")
    if not _can_be_replayed(content):
        raise UserError(f"{path} is damaged: it does not hold a whole step; give another file")
    return content


def _can_be_replayed(content: dict[str, Any]) -> bool:
    """Whether a file holds what `varlit replay` takes from it."""
    kinds = {"module": str, "precision": str, "step": int, "total_steps": int, "parts": list}
    if any(type(content.get(name)) is not kind for name, kind in kinds.items()):
        return False
    return bool(content["parts"]) and all(
        isinstance(part, dict)
        and type(part.get("seed")) is int
        and isinstance(part.get("batch"), dict)
        and all(isinstance(value, Tensor | int | str) for value in part["batch"].values())
        for part in content["parts"]
    )


def some(names: list[str], most: int) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _content(
    trainer: Trainer,
    pl_module: StageModule,
    record: StepRecord,
    reading: Reading,
    parts: list[Part],
    bad: BadStep,
) -> dict[str, Any]:
    """All of it as tensors, numbers and text, which torch loads without running anything."""
    return {
        "module": type(pl_module).__name__,
        "step": record.step,
        "total_steps": pl_module.total_steps,
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
        "loss": reading.loss,
        "gradient_norm": reading.gradient_norm,
        "terms": [{name: term.cpu() for name, term in part.items()} for part in record.terms],
        "broken_terms": bad.terms,
        "broken_gradients": bad.weights,
        "parts": [
            {"batch": _plain(part.batch), "ids": _ids(trainer, part), "seed": part.seed}
            for part in parts
        ],
    }


def _file(trainer: Trainer, step: int) -> Path:
    rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
    return run_dir(trainer) / f"bad-step-{step:07d}{rank}.pt"


def _write(path: Path, content: dict[str, Any]) -> None:
    # Not torch.save to the file: a full disk would be a RuntimeError of torch's.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())
    rank = path.stem.partition("-rank")[2]
    own = [p for p in path.parent.glob("bad-step-*.pt") if p.stem.partition("-rank")[2] == rank]
    for old in sorted(own)[:-KEPT_FILES]:
        old.unlink()


def _ids(trainer: Trainer, part: Part) -> list[int]:
    """Images of a part: what its batch says, else what the order of the data says."""
    if "id" in part.batch:
        named: list[int] = part.batch["id"].tolist()
        return named
    loader = trainer.train_dataloader
    if not isinstance(loader, ResumableLoader):
        return []
    sampler, (epoch, step) = copy.copy(loader.sampler), part.place
    sampler.set_epoch(epoch)
    ordered: list[int] = next(sampler.batches(step)).ids.tolist()
    return ordered


def _plain(batch: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in batch.items() if isinstance(value, Tensor | int | str)}
    return {n: value.cpu() if isinstance(value, Tensor) else value for n, value in kept.items()}


def _broken_ids(trainer: Trainer, part: Part) -> list[int]:
    """Images of a part that are not finite themselves."""
    ids = _ids(trainer, part)
    rows: set[int] = set()
    for value in part.batch.values():
        if not isinstance(value, Tensor) or not value.is_floating_point() or not ids:
            continue
        if value.dim() > 0 and len(value) == len(ids):
            is_finite = torch.isfinite(value).reshape(len(ids), -1).all(dim=1)
            rows |= set((~is_finite).nonzero().flatten().tolist())
    return [ids[row] for row in sorted(rows)]
