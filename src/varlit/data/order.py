"""Which samples a process sees, in which order.

Three orders: `EpochBatchSampler` shuffles for training, `evaluation_batches` shares a set out
without repeating a sample, `EncodingBatches` walks the shards that a token cache still lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from varlit.data.draws import PLAIN_VIEW, draw_integers
from varlit.errors import UserError


@dataclass(frozen=True, eq=False)
class BatchIndex:
    """One process's share of one batch: which samples, and which view of each.

    Attributes:
        ids: (B,) int64, rows of the source.
        views: (B,) int64, see `varlit.data.draws`.
    """

    ids: np.ndarray
    views: np.ndarray


class BatchSampler(Protocol):
    """An order of batches that can be entered anywhere."""

    epoch: int
    step_samples: int

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls it."""

    def batches(self, start: int) -> Iterator[BatchIndex]:
        """Yield the batches of the epoch from batch `start` on."""


class EpochBatchSampler:
    """The shuffled order of training.

    A global batch is a slice of the permutation seeded by (seed, epoch); with accumulation it is
    cut into that many steps, and of each step rank r takes every `world_size`-th sample. So the
    sequence of global batches is the same on any number of processes. The samples that do not
    fill the last global batch of an epoch are left out of that epoch.

    Args:
        num_samples: Size of the source.
        batch_size: Global batch size: over all processes and accumulation steps.
        rank: This process, 0 .. world_size - 1.
        world_size: Number of processes.
        accumulation: Steps that share one optimizer update.
        seed: Seed of the permutations.
        shuffle: Without it the order is the source's and every view is the plain one.

    Raises:
        UserError: If the batch does not divide, or is larger than the source.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        check_batch_divides(batch_size, world_size, accumulation)
        if batch_size > num_samples:
            raise UserError(
                f"batch_size {batch_size} is more than the {num_samples} training samples: "
                f"set batch_size to {num_samples} or less, or add data."
            )
        self.num_samples, self.rank, self.world_size = num_samples, rank, world_size
        self.seed, self.shuffle = seed, shuffle
        self.step_samples = batch_size // accumulation
        self.num_steps = num_samples // batch_size * accumulation
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass."""
        self.epoch = epoch

    def batches(self, start: int) -> Iterator[BatchIndex]:
        """Yield this rank's share of each step, from step `start` of the epoch on."""
        order = self._order()
        view = self.epoch + 1 if self.shuffle else PLAIN_VIEW
        for step in range(start, self.num_steps):
            first = step * self.step_samples
            ids = order[first : first + self.step_samples][self.rank :: self.world_size]
            yield BatchIndex(ids, np.full_like(ids, view))

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_samples, dtype=np.int64)
        generator = torch.Generator()
        generator.manual_seed(int(draw_integers(self.seed, self.epoch)[0] >> np.uint64(1)))
        return torch.randperm(self.num_samples, generator=generator).numpy()


class FixedBatchSampler:
    """The same list of batches in every epoch."""

    def __init__(self, indices: Sequence[BatchIndex]) -> None:
        self.indices = list(indices)
        self.step_samples = 1
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Take note of the epoch; the order does not depend on it."""
        self.epoch = epoch

    def batches(self, start: int) -> Iterator[BatchIndex]:
        """Yield the batches from batch `start` on."""
        yield from self.indices[start:]


def evaluation_batches(
    num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> FixedBatchSampler:
    """Share a set out over the ranks in file order, each sample exactly once.

    Every rank gets the same number of batches (or a step that talks to the other ranks would
    hang) of sizes that differ by at most one, so nothing is padded with repeated samples.

    Args:
        num_samples: Size of the source.
        batch_size: Batch size of one process; exceeded by one only where ranks would fall short.
        rank: This process.
        world_size: Number of processes.

    Raises:
        UserError: If there are fewer samples than processes.
    """
    if num_samples < world_size:
        raise UserError(
            f"{num_samples} samples cannot be evaluated by {world_size} processes: "
            "use fewer devices or a larger validation set."
        )
    ids = np.arange(rank, num_samples, world_size, dtype=np.int64)
    largest_share = -(-num_samples // world_size)
    num_batches = min(-(-largest_share // batch_size), num_samples // world_size)
    return FixedBatchSampler(
        [
            BatchIndex(part, np.full_like(part, PLAIN_VIEW))
            for part in np.array_split(ids, num_batches)
        ]
    )


class EncodingBatches:
    """Whole images of one shard to a batch, all views of an image next to each other.

    What is in a batch depends on the shards alone, never on devices or on where an encoding was
    cut off: in a batch of another size a convolution rounds in another way, and of two codes that
    are nearly as near the other one wins.

    Args:
        shards: Rows of each shard, ascending.
        views: Views of each row, see `varlit.data.draws`.
        batch_size: Most views in a batch; one image may have more.
    """

    def __init__(self, shards: Sequence[range], views: range, batch_size: int) -> None:
        self.shards, self.views = list(shards), views
        self.images = max(1, batch_size // len(views))
        counts = [-(-len(shard) // self.images) for shard in self.shards]
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.step_samples = 1
        self.epoch = 0

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.shards else 0

    def set_epoch(self, epoch: int) -> None:
        """Take note of the epoch; the order does not depend on it."""
        self.epoch = epoch

    def batches(self, start: int) -> Iterator[BatchIndex]:
        """Yield the batches from batch `start` on."""
        yield from map(self.batch, range(start, len(self)))

    def batch(self, number: int) -> BatchIndex:
        """Return one batch."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        place = number - (int(self.ends[shard - 1]) if shard else 0)
        rows = self.shards[shard][place * self.images : (place + 1) * self.images]
        ids = np.array(rows, dtype=np.int64)  # n
        return BatchIndex(np.repeat(ids, len(self.views)), np.tile(np.array(self.views), len(ids)))


def check_batch_divides(batch_size: int, world_size: int, accumulation: int) -> None:
    """Check that every process gets the same share of a global batch.

    Raises:
        UserError: If it does not; the nearest sizes that do are named.
    """
    parts = world_size * accumulation
    if batch_size >= parts and batch_size % parts == 0:
        return
    below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
    nearest = f"{below} or {above}" if below else f"{parts}"
    raise UserError(
        f"batch_size {batch_size} counts all devices, and does not divide over {world_size} "
        f"process(es) x {accumulation} accumulation step(s) = {parts}: use {nearest}."
    )
