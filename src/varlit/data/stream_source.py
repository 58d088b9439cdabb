"""Streamed images as batches: shards read from front to back, in the order of any sampler."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from varlit.data.bad_files import BadFile
from varlit.data.crops import SquareCrop
from varlit.data.draws import draw_below
from varlit.data.formats.remote import RemoteShards
from varlit.data.formats.tar_stream import Sample
from varlit.data.image_source import CroppedImages, Handling
from varlit.data.order import BatchIndex, BatchSampler, FixedBatchSampler
from varlit.data.read_ahead import read_ahead

NUM_SPARES = 4
"""Images that travel with a batch beyond its own, to replace broken ones of a batch of one."""
NUM_BATCHES_AHEAD = 4


@dataclass(frozen=True, eq=False)
class StreamBatch(BatchIndex):
    """A share of a batch with its images, still encoded.

    Attributes:
        samples: By row: those of the batch, and spares.
    """

    samples: Mapping[int, Sample]


class StreamSource(CroppedImages):
    """Batches of streamed images, decoded and cropped as those in random access.

    Args:
        shards: The split.
        crop: The geometry.
        handling: What is done with bad images; one that replaces another is of the same batch.
    """

    def __init__(self, shards: RemoteShards, crop: SquareCrop, handling: Handling) -> None:
        super().__init__(crop, handling)
        self.shards = shards
        self._samples: Mapping[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: BatchIndex) -> dict[str, object]:
        """Decode one batch; where its images do not come with it, read their shards first.

        Raises:
            UserError: If an image is refused.
        """
        if not isinstance(index, StreamBatch):
            index = next(StreamedBatches(FixedBatchSampler([index]), self.shards, 0).filled(0))
        self._samples = index.samples
        return super().__getitem__(index)

    @property
    def place(self) -> str:
        """Where the images come from, as the user wrote it."""
        return self.shards.place

    def read(self, row: int) -> bytes:
        """Return the bytes of an image of the batch; OSError if they were lost."""
        sample = self._samples[row]
        if sample.encoded is None:
            assert sample.fault is not None
            raise OSError(sample.fault.reason)
        return sample.encoded

    def where(self, row: int) -> str:
        """Return shard and name of an image of the batch; the shard alone if it was lost."""
        return self._samples[row].where

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of rows of the batch; 0 where they were lost."""
        return np.array([self._samples[row].label for row in rows.tolist()], dtype=np.int64)

    def other(self, sample_id: int, view: int, attempt: int) -> int:
        """Draw from what is at hand: the batch and its spares."""
        rows = [row for row, sample in self._samples.items() if sample.encoded is not None]
        if not rows:
            return sample_id
        return rows[int(draw_below(len(rows), self.crop.seed, sample_id, view, attempt)[0])]

    def bad_file(self, row: int, reason: str) -> BadFile:
        """Return how a broken image is listed: a lost one with its shard."""
        return self._samples[row].fault or super().bad_file(row, reason)


class StreamedBatches:
    """A sampler whose batches bring their images along.

    It reads in the main process, ahead of the workers, which decode: so every byte comes once for
    each device, and neither the order nor a resumed run depends on the number of workers. A row
    must occur once, or several times next to each other.

    Args:
        sampler: The order.
        shards: The images.
        num_spares: How many good images to send along with each batch.
    """

    def __init__(self, sampler: BatchSampler, shards: RemoteShards, num_spares: int) -> None:
        self.sampler, self.shards, self.num_spares = sampler, shards, num_spares
        self.step_samples, self.epoch = sampler.step_samples, sampler.epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)

    def batches(self, start: int) -> Iterator[StreamBatch]:
        """Yield the batches from batch `start` on; shards that only others need are not opened."""
        return read_ahead(self.filled(start), NUM_BATCHES_AHEAD)

    def filled(self, start: int) -> Generator[StreamBatch, None, None]:
        """Yield the same, reading when asked."""
        plan = _distinct([_distinct([index.ids]) for index in self.sampler.batches(start)])
        reader = _Reader(self.shards, plan)
        recent: deque[Sample] = deque(maxlen=self.num_spares)
        end, last = 0, -1
        for index in self.sampler.batches(start):
            rows = _distinct([index.ids]).tolist()
            if last not in (-1, rows[0]):
                reader.release([last])
            end += len(rows) - (last == rows[0])
            samples = {row: reader.get(row) for row in rows}
            spares = self._next_good(reader, plan[end:]) or list(recent)
            carried = {sample.row: sample for sample in spares} | samples
            yield StreamBatch(index.ids, index.views, carried)
            recent.extend(sample for sample in samples.values() if sample.encoded is not None)
            reader.release(rows[:-1])
            last = rows[-1]

    def _next_good(self, reader: _Reader, plan: np.ndarray) -> list[Sample]:
        found: list[Sample] = []
        for row in plan:
            if len(found) == self.num_spares:
                break
            sample = reader.get(int(row))
            if sample.encoded is not None:
                found.append(sample)
        return found


class _Reader:
    """Holds what has arrived until it is used.

    Args:
        shards: The images.
        plan: (n,) int64, the rows that are needed, each once; a shard is opened when its first is.
    """

    def __init__(self, shards: RemoteShards, plan: np.ndarray) -> None:
        self.shards = shards
        self.wanted = np.zeros(len(shards), dtype=bool)
        self.wanted[plan] = True
        self.held: dict[int, Sample] = {}
        self.arriving: Iterator[Sample] = iter(())

    def get(self, row: int) -> Sample:
        """Return the sample of a row, reading on until it is there."""
        while row not in self.held:
            sample = next(self.arriving, None)
            if sample is None:
                self.arriving = self._open(row)
            elif self.wanted[sample.row]:
                self.held[sample.row] = sample
        return self.held[row]

    def release(self, rows: list[int]) -> None:
        """Forget rows that have been used."""
        for row in rows:
            del self.held[row]

    def _open(self, row: int) -> Iterator[Sample]:
        tar = self.shards.tar(self.shards.shard_of(row))
        [places] = np.nonzero(self.wanted[tar.first : tar.first + tar.count])
        return tar.samples(tar.first + int(places[-1]) + 1)


def _distinct(parts: list[np.ndarray]) -> np.ndarray:
    """Join rows and leave out those that repeat the one before."""
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    return rows[np.diff(rows, prepend=-1) != 0]
