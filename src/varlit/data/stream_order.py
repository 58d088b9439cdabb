"""The shuffled order of a training stream: shards in another order each epoch, rows mixed nearby.

It is a function of (seed, epoch) and of how many images each shard holds, so it is known before a
byte is read: what a resumed run need not see is never fetched.
"""

from __future__ import annotations

import numpy as np

from varlit.data.draws import draw_below, draw_integers
from varlit.data.order import EpochBatchSampler


class ShardSampler(EpochBatchSampler):
    """An order that shards can be read in from front to back.

    The shards of an epoch are laid out in permuted order and cut into one piece for each rank,
    all of the same length: ranks share no image, and a shard at a cut is read by both. Within its
    piece every image is delayed by a random number of places, so that about `shuffle_buffer`
    images wait in memory at any time. Unlike with files, the order depends on the number of ranks.

    Args:
        counts: (S,) int64, images of each shard.
        shuffle_buffer: Images that wait in memory; 0 keeps the order within shards.
        batch_size: As for EpochBatchSampler, like all that follow.
        rank: This process.
        world_size: Number of processes.
        accumulation: Steps that share one optimizer update.
        seed: Seed of the permutations.
        shuffle: Without it the order is the rows'.

    Raises:
        UserError: If the batch does not divide, or is larger than the set.
    """

    def __init__(
        self,
        counts: np.ndarray,
        shuffle_buffer: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        num_samples = int(counts.sum())
        super().__init__(num_samples, batch_size, rank, world_size, accumulation, seed, shuffle)
        self.counts, self.shuffle_buffer = counts, shuffle_buffer

    def _order(self) -> np.ndarray:
        """Interleave the ranks' pieces, as `batches` takes them apart."""
        if not self.shuffle:
            return super()._order()
        length = self.num_samples // self.world_size
        rows = self._rows_of_shuffled_shards()[: self.world_size * length]
        # Uniform over twice the buffer: the mean delay, and so what waits, is one buffer.
        delays = draw_below(2 * self.shuffle_buffer + 1, self.seed, self.epoch, rows, 1)
        shape = (self.world_size, length)
        ranked = np.argsort(np.arange(length) + delays.reshape(shape), axis=1, kind="stable")
        pieces = np.take_along_axis(rows.reshape(shape), ranked, axis=1)
        per_rank = self.num_steps * self.step_samples // self.world_size
        return np.ascontiguousarray(pieces[:, :per_rank].T).reshape(-1)

    def _rows_of_shuffled_shards(self) -> np.ndarray:
        turns = draw_integers(self.seed, self.epoch, np.arange(len(self.counts)))
        order = np.argsort(turns, kind="stable")
        firsts = (np.cumsum(self.counts) - self.counts)[order]
        counts = self.counts[order]
        starts = np.cumsum(counts) - counts
        return np.repeat(firsts - starts, counts) + np.arange(self.num_samples)
