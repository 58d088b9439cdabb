"""What an evaluation has drawn so far, on disk: features of samples, so that it can go on.

What choosing these samples took is kept with them, where they were chosen.

Each process keeps one file, `rank-<r>-<count>.pt`, of all that it answers for. The next one is
written before the last one goes; where both are found, the larger one counts. So a run may stop at
any moment and go on with another number of processes.
"""

from __future__ import annotations

import os
import pickle
import re
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import torch

from varlit.errors import UserError
from varlit.generation.rejection_rule import RejectionCost
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.ranks import place_among_ranks

_NAME = re.compile(r"rank-\d+-(\d+)\.pt")
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


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
        self._saved_s = time.monotonic()
        self._saved_count = 0

    def load_into(self, features: ImageFeatures) -> None:
        """Take this process's share of what was saved; nobody may write before all have read."""
        accepted: list[Path] = []
        surplus: list[Path] = []
        seen = torch.zeros(0, dtype=torch.int64)
        for path in self._files():
            ids = _ids(path)
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
        path = self.folder / f"rank-{self._rank}-{features.count:08d}.pt"
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            try:
                cost = {} if self.cost is None else {"cost": self.cost.counts()}
                torch.save(features.state_dict() | cost, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot save what was drawn to {path} ({error}); free some space and run the same "
                "command again"
            ) from error
        for old in self._own:
            if old != path:
                old.unlink(missing_ok=True)
        self._own, self._saved_count = [path], features.count

    def clear(self) -> int:
        """Forget everything, and say how many files that was; before anybody reads."""
        files = self._files()
        for path in files:
            path.unlink(missing_ok=True)
        return len(files)

    def _files(self) -> list[Path]:
        """The largest first."""
        found = [(m, p) for p in self.folder.glob("rank-*.pt") if (m := _NAME.fullmatch(p.name))]
        return [path for m, path in sorted(found, key=lambda pair: (-int(pair[0][1]), pair[1]))]


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _ids(path: Path) -> torch.Tensor | None:
    try:
        ids = _load(path)["ids"]
        assert isinstance(ids, torch.Tensor)
        return ids.clone()
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        warnings.warn(f"{path} cannot be read ({reason}); its images are drawn anew", stacklevel=4)
        return None
