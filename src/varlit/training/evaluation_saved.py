"""What an evaluation has drawn so far, on disk: features of samples, so that it can go on.

Seconds are kept with them, and what choosing took, where samples were chosen.

Each process keeps one file, `rank-<r>-<count>-<random>.pt`, of all it answers for. The next one
is written before the last one goes; where both are found, the larger one counts. So a run may stop
at any moment and go on with another number of processes. Names are never used twice: after such a
change another process's file may have this rank and this count.
"""

from __future__ import annotations

import re
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import torch

from varlit.errors import UserError
from varlit.generation.rejection.rule import RejectionCost
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.ranks import place_among_ranks
from varlit.training.checkpoint_files import remove_leftovers
from varlit.training.evaluation_samples import SampleFile
from varlit.training.sealing import flaw, write_sealed

_NAME = re.compile(r"rank-\d+-(\d+)(?:-[0-9a-f]+)?\.pt")


class SavedFeatures:
    """The files of one evaluation.

    Args:
        folder: Of the protocol; every process must see the same one.
        every_s: How often to save.
        cost: What choosing takes, saved and loaded with the features; None = nothing is chosen.
    """

    def __init__(self, folder: Path, every_s: float, cost: RejectionCost | None = None) -> None:
        self.folder, self.every_s, self.cost = folder, every_s, cost
        self._rank, self._world_size = place_among_ranks()
        self._own: list[Path] = []
        self._saved_s = self._started_s = time.monotonic()
        self._earlier_s = 0.0
        self._saved_count = 0

    def load_into(self, features: ImageFeatures) -> None:
        """Take this process's share of what was saved; nobody may write before all have read."""
        if self._rank == 0:
            remove_leftovers(self.folder)
        accepted: list[Path] = []
        surplus: list[Path] = []
        seen = torch.zeros(0, dtype=torch.int64)
        for path in self._files():
            ids, seconds = _told(path)
            # Processes draw side by side: the one that drew longest tells how long it took.
            self._earlier_s = max(self._earlier_s, seconds)
            # One that was superseded when the run was cut off, or a damaged one.
            is_surplus = ids is None or bool(torch.isin(ids, seen).any())
            (surplus if is_surplus else accepted).append(path)
            if ids is not None and not is_surplus:
                seen = torch.cat((seen, ids))
        self._own = accepted[self._rank :: self._world_size]
        for path in self._own:
            state = _load(path)
            features.merge(state)
            if self.cost is not None:
                self.cost.add_counts(state.get("cost", {}))
        if self._rank == 0:
            self._own = self._own + surplus
        self._saved_count = features.count
        self._started_s = time.monotonic()

    @property
    def drawing_s(self) -> float:
        """Seconds since `load_into`, and before it in earlier runs, up to what they had saved."""
        return self._earlier_s + time.monotonic() - self._started_s

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved_s >= self.every_s

    def save(self, features: ImageFeatures) -> None:
        """Save what this process answers for, unless nothing is new.

        Raises:
            UserError: If it cannot be written.
        """
        self._saved_s = time.monotonic()
        if features.count == self._saved_count:
            return
        name = f"rank-{self._rank}-{features.count:08d}-{uuid.uuid4().hex[:12]}.pt"
        path = self.folder / name
        told: dict[str, Any] = {"drawing_s": self.drawing_s}
        if self.cost is not None:
            told["cost"] = self.cost.counts()
        try:
            write_sealed(features.state_dict() | told, path)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot save what was drawn to {path} ({error}); free some space and run the same "
                "command again"
            ) from error
        for old in self._own:
            old.unlink(missing_ok=True)
        self._own, self._saved_count = [path], features.count

    @property
    def is_empty(self) -> bool:
        """Whether nothing was saved."""
        return not self._files()

    def clear(self) -> None:
        """Forget everything; before anybody reads."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The largest first."""
        found = [(m, p) for p in self.folder.glob("rank-*.pt") if (m := _NAME.fullmatch(p.name))]
        return [path for m, path in sorted(found, key=lambda pair: (-int(pair[0][1]), pair[1]))]


def begin_samples(saved: SavedFeatures, file: SampleFile | None, plain: Path | None) -> None:
    """Make room for samples, or take those that are there; the first process does so, alone.

    Features whose images are gone are of no use for a file of samples: then all are drawn anew, and
    the reason is said.

    Args:
        saved: Features of samples that went into a file.
        file: What is wanted; None = nothing.
        plain: Where features of the same samples lie if no file was wanted.

    Raises:
        UserError: If the file cannot be written.
    """
    if file is None or file.is_begun or file.is_written or file.take_over():
        return
    if not saved.is_empty:
        if file.noted is None:
            reason = f"{file.raw}, which held the images, is not there any more"
        elif file.noted.exists():
            reason = f"{file.noted}, which held the images, was changed since"
        else:
            reason = f"{file.noted}, which held the images, is not there any more"
        _tell_anew(reason)
    elif plain is not None and not SavedFeatures(plain, 0).is_empty:
        _tell_anew("the earlier run wrote no samples, and kept features alone")
    saved.clear()
    file.begin()


def _tell_anew(reason: str) -> None:
    print(f"varlit: {reason}: all images are drawn anew", flush=True)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _told(path: Path) -> tuple[torch.Tensor | None, float]:
    """Ids of the samples in a file, None if it is damaged, and how long drawing had taken then."""
    try:
        if reason := flaw(path):
            raise ValueError(reason)
        state = _load(path)
        ids = state["ids"]
        if ids.dtype != torch.int64 or ids.ndim != 1:
            raise ValueError("it holds no ids")
        return ids.clone(), float(state.get("drawing_s", 0.0))
    except Exception as error:  # in a damaged pickle any instruction may go wrong in any way
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        warnings.warn(f"{path} cannot be read ({reason}); its images are drawn anew", stacklevel=4)
        return None, 0.0
