"""A loader that goes on exactly where a run stopped, and the source of batches that it reads."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from varlit.data.bad_files import BadFiles
from varlit.data.order import BatchIndex, BatchSampler
from varlit.data.worker_deaths import WorkerNotes
from varlit.errors import UserError

NOTES = "notes"
"""Batch key under which a source reports `(topic, sentence)` pairs; the loader warns of each topic
once, in the main process, and takes the key out."""
BAD_FILES = "bad_files"
"""Batch key under which a source reports each `BadFile` that it skipped; taken out likewise."""


class BatchSource(Protocol):
    """What a loader reads: a set of samples that hands out whole batches."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Return the batch as a dict of tensors whose first dimension is B."""


class ResumableLoader:
    """Batches of a source in a sampler's order, with a position that checkpoints keep.

    Lightning saves and restores any loader that has `state_dict` and `load_state_dict`. The
    position is kept as (epoch, samples seen), so a run goes on exactly after a change of the
    number of workers or devices too (torchdata's StatefulDataLoader ties its state to both).
    It is no DataLoader, so Lightning leaves sampler and order alone.

    Args:
        source: The samples.
        sampler: The order; `sampler.set_epoch` is called by Lightning.
        num_workers: Worker processes; 0 reads in the main process.
        bad_files: Where skipped files are counted; None lets them pass.

    Attributes:
        waited_s: Seconds that the consumer has waited for batches, of all epochs.
    """

    batch_sampler = None

    def __init__(
        self,
        source: BatchSource,
        sampler: BatchSampler,
        num_workers: int = 0,
        bad_files: BadFiles | None = None,
    ) -> None:
        self.source, self.sampler, self.bad_files = source, sampler, bad_files
        self.waited_s = 0.0
        self._start = 0
        self._position = _Position(sampler.epoch, 0)
        self._topics: set[str] = set()
        self._order = _OrderFrom(sampler)
        self._notes = WorkerNotes(num_workers)
        self._batches: DataLoader[Any] = DataLoader(
            _Reported(source),
            batch_size=None,
            sampler=self._order,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=self._notes.begin,
            pin_memory=torch.cuda.is_available(),
            # An own generator, or every new iterator would advance the global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator starts at its first batch: Lightning makes the iterator before it sets the
        # epoch, and workers must not prefetch from the wrong permutation.
        start, self._start = self._resume_point(), 0
        epoch = self.sampler.epoch
        self._order.start = start
        step, batches, loaded = start, iter(self._batches), None
        self._notes.processes = getattr(batches, "_workers", [])
        while True:
            began_s = time.perf_counter()
            loaded = next(batches, None)
            self.waited_s += time.perf_counter() - began_s
            if isinstance(loaded, dict):
                loaded = self._reported(loaded)
            if loaded is None or isinstance(loaded, _Refusal):
                break
            step += 1
            self._position = _Position(epoch, step)
            yield loaded
        if isinstance(loaded, _Refusal):
            del batches
            self._iterator = None  # the last reference: workers stop now and not at some later time
            raise UserError(loaded.message)

    def _reported(self, batch: dict[str, Any]) -> dict[str, Any] | _Refusal:
        """Take out of a batch what its source noted, and pass it on."""
        for topic, sentence in batch.pop(NOTES, ()):
            self._warn_once(topic, sentence)
        try:
            for bad in batch.pop(BAD_FILES, ()):
                if self.bad_files is not None:
                    self.bad_files.add(bad)
        except UserError as error:
            return _Refusal(str(error))
        return batch

    @property
    def _iterator(self) -> Any:
        """The DataLoader's, under the name by which Lightning stops workers after a run."""
        return self._batches._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._batches._iterator = iterator

    def state_dict(self) -> dict[str, int]:
        """Return the position as plain integers."""
        return {
            "epoch": self._position.epoch,
            "samples_seen": self._position.step * self.sampler.step_samples,
            "num_samples": len(self.source),
            "step_samples": self.sampler.step_samples,
            "epoch_samples": len(self.sampler) * self.sampler.step_samples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position; start the epoch anew if the data have changed.

        Raises:
            UserError: If steps of another size cannot go on from there.
        """
        epoch, step = state["epoch"], state["samples_seen"] // self.sampler.step_samples
        if state.get("step_samples", self.sampler.step_samples) != self.sampler.step_samples:
            self._check_resized(state)
            step = len(self.sampler) if step else 0
        if state["num_samples"] != len(self.source):
            warnings.warn(
                f"the checkpoint was made with {state['num_samples']} samples, now there are "
                f"{len(self.source)}: the interrupted epoch starts anew.",
                stacklevel=2,
            )
            step = 0
        if step >= len(self.sampler):
            epoch, step = epoch + 1, 0
        self.sampler.set_epoch(epoch)
        self._position, self._start = _Position(epoch, step), step

    def _check_resized(self, state: dict[str, int]) -> None:
        """Refuse what Lightning, which counts an epoch in steps, would get wrong.

        At the end of an epoch it takes that epoch for done only if it counts as many steps as the
        new kind has, so steps may become larger there, but not smaller.
        """
        seen, old, new = state["samples_seen"], state["step_samples"], self.sampler.step_samples
        at_end = seen == state["epoch_samples"] and seen // old >= len(self.sampler)
        if seen and not at_end:
            raise UserError(
                f"the checkpoint was made with {old} samples a step, {seen} of "
                f"{state['epoch_samples']} into an epoch; now a step has {new}. Set "
                "data.batch_size and trainer.accumulate_grad_batches as they were (steps can grow "
                "at the end of an epoch), or start under another --name."
            )

    def _resume_point(self) -> int:
        return self._start if self._position.epoch == self.sampler.epoch else 0

    def _warn_once(self, topic: str, sentence: str) -> None:
        if topic not in self._topics:
            self._topics.add(topic)
            warnings.warn(sentence, stacklevel=3)


@dataclass(frozen=True)
class _Position:
    """How many steps of which epoch have been handed out."""

    epoch: int
    step: int


@dataclass(frozen=True)
class _Refusal:
    """A user's mistake on its way from a worker: DataLoader would bury it in a traceback."""

    message: str


class _OrderFrom:
    """Lets the DataLoader start in the middle of an epoch."""

    def __init__(self, sampler: BatchSampler) -> None:
        self.sampler, self.start = sampler, 0

    def __iter__(self) -> Iterator[BatchIndex]:
        return self.sampler.batches(self.start)

    def __len__(self) -> int:
        return len(self.sampler)


class _Reported(Dataset[Any]):
    """Hands a UserError over as a value."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, index: BatchIndex) -> dict[str, Any] | _Refusal:
        try:
            return self.source[index]
        except UserError as error:
            return _Refusal(str(error))
