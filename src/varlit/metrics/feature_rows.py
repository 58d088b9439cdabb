"""Features kept by sample id: the same rows in the same order, whoever computed them and when."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.metrics.ranks import concatenate_over_ranks

_SUBSET_SEED = 0x5EED


class FeatureRows:
    """Rows of features (N, D) by the id of their sample, fp32 on the CPU.

    With a limit it keeps those samples whose hashed ids are smallest: a random subset that is a
    function of the ids alone. So it does not depend on processes, batches or order, and needs not
    know how many samples there will be.

    Args:
        dim: D.
        limit: How many rows to keep at most; None = all.
    """

    def __init__(self, dim: int, limit: int | None = None) -> None:
        self.dim, self.limit = dim, limit
        self._ids = [torch.zeros(0, dtype=torch.int64)]
        self._rows = [torch.zeros(0, dim)]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Tensor:
        """Ids (N,) of the rows, ascending."""
        self._tidy()
        return self._ids[0]

    @property
    def rows(self) -> Tensor:
        """Features (N, D) in the order of `ids`."""
        self._tidy()
        return self._rows[0]

    def add(self, ids: Tensor, rows: Tensor) -> None:
        """Keep rows (B, D) of samples `ids` (B,)."""
        self._ids.append(ids.cpu().to(torch.int64))
        self._rows.append(rows.detach().float().cpu())
        # Twice the limit: tidied once for many batches, and never more memory than that.
        num_held = sum(map(len, self._ids))
        if self.limit is not None and num_held > 2 * max(self.limit, len(ids)):
            self._tidy()

    def reduced(self) -> FeatureRows:
        """The rows of all processes; every process must call it."""
        whole = FeatureRows(self.dim, self.limit)
        whole.add(concatenate_over_ranks(self.ids), concatenate_over_ranks(self.rows))
        return whole

    def subset(self, count: int) -> Tensor:
        """Features (count, D) of a random choice of samples that depends on their ids alone."""
        return self.rows[chosen(self.ids, count)]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as plain tensors."""
        return {"ids": self.ids, "rows": self.rows}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the rows of another store's `state_dict`.

        Raises:
            UserError: If they are of another length, or not as many as their ids.
        """
        if state["ids"].shape != state["rows"].shape[:1]:
            raise UserError("the saved features are not one for each id; remove them to begin anew")
        if state["rows"].ndim != 2 or state["rows"].shape[1] != self.dim:
            raise UserError(
                f"the saved features are {tuple(state['rows'].shape)}; expected (N, {self.dim}). "
                "Were they made by another network? Remove them to begin anew"
            )
        self.add(state["ids"], state["rows"])

    def _tidy(self) -> None:
        if len(self._ids) == 1:
            return
        ids, rows = torch.cat(self._ids), torch.cat(self._rows)
        order = ids.argsort(stable=True)
        if self.limit is not None and len(ids) > self.limit:
            order = order[chosen(ids[order], self.limit)]
        self._ids, self._rows = [ids[order]], [rows[order]]


def chosen(ids: Tensor, count: int) -> Tensor:
    """Places, ascending, of `count` of the ids (N,): those that hash to the smallest numbers."""
    if len(ids) <= count:
        return torch.arange(len(ids))
    order = np.argsort(_hashed(ids.numpy()), kind="stable")[:count]
    return torch.from_numpy(np.sort(order))


def _hashed(ids: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): every id to another, random looking number."""
    with np.errstate(over="ignore"):
        z = (ids.astype(np.uint64) + np.uint64(_SUBSET_SEED)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
