"""What all data modules share: one global batch size, ranks, loaders, and the order of encoding."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from lightning.pytorch import LightningDataModule

from varlit.data.bad_files import BadFiles
from varlit.data.loader import BatchSource, ResumableLoader
from varlit.data.order import (
    BatchSampler,
    EncodingBatches,
    EpochBatchSampler,
    evaluation_batches,
)
from varlit.errors import UserError

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


class GlobalBatchDataModule(LightningDataModule):
    """A data module whose batch size is that of the whole run.

    Each device gets batch_size / (devices * accumulation steps) samples a step, so the same
    recipe trains the same on any number of devices. Works without a trainer as on one device.

    Args:
        batch_size: Samples of one optimizer update, over all devices and accumulation steps.
        num_workers: Processes that read data, for each device.
        seed: Seed of order and random views.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: expected at least 1.")
        if num_workers < 0:
            raise UserError(f"num_workers is {num_workers}: expected 0 (no processes) or more.")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        # When encoding is resumed, some ranks may have nothing left to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @abstractmethod
    def source(self, split: Split) -> BatchSource | None:
        """Return the samples of a split; None if the data have no such split."""

    @property
    def world_size(self) -> int:
        """Number of processes that share a batch."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def rank(self) -> int:
        """This process, 0 .. world_size - 1."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def accumulation(self) -> int:
        """Steps that share one optimizer update."""
        return self.trainer.accumulate_grad_batches if self.trainer is not None else 1

    @property
    def device_batch_size(self) -> int:
        """Samples of one step on one device, rounded down (training refuses a remainder)."""
        return max(1, self.batch_size // (self.world_size * self.accumulation))

    @property
    def _is_overfitting(self) -> bool:
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def train_dataloader(self) -> ResumableLoader:
        """Return the shuffled training batches, without shuffling under `overfit_batches`.

        Raises:
            UserError: If the batch size does not divide or exceeds the training set.
        """
        source = self.source("train")
        assert source is not None
        return self.loader(source, self.train_sampler(source))

    def train_sampler(self, source: BatchSource) -> EpochBatchSampler:
        """Return the order of training."""
        return EpochBatchSampler(
            len(source),
            self.batch_size,
            self.rank,
            self.world_size,
            self.accumulation,
            self.seed,
            shuffle=not self._is_overfitting,
        )

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Return this rank's part of the validation set in file order; empty if there is none."""
        source = self.source("val")
        if source is None:
            return []
        batches = evaluation_batches(
            len(source), self.device_batch_size, self.rank, self.world_size
        )
        return self.loader(source, batches)

    def test_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Return the validation batches: the held-out set is what is tested on."""
        return self.val_dataloader()

    def loader(self, source: BatchSource, sampler: BatchSampler) -> ResumableLoader:
        """Return a loader with this module's workers."""
        return ResumableLoader(source, sampler, self.num_workers, self.bad_files(source))

    def bad_files(self, source: BatchSource) -> BadFiles | None:
        """Return where the files that `source` skips are counted; None if it skips none."""
        return None


class LabelledImageDataModule(GlobalBatchDataModule):
    """Images with class labels, which a tokenizer trains on and then encodes.

    Batches: image (B, 3, H, W) float in [-1, 1], label (B,), id (B,) row in the split, and crop
    (B,) the view of the image, 0 being the centre crop.

    To encode into a token cache, a writer sets `plan_encoding` before the trainer asks for
    `predict_dataloader()`; the plan gets the number of images of each split and returns this
    rank's batches. Without it, the ranks share out all images, centre crop.

    Attributes:
        image_size: Side of the images in pixels.
        class_names: Names in the order of the labels.
        num_classes: Number of classes.
        has_random_views: Whether two views of an image may differ.
        settings: Arguments that it was made with, by which a token cache can make it again.
    """

    class_names: tuple[str, ...]
    has_random_views = True
    settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, whatever subclass takes them."""
        self = super().__new__(cls)
        self.settings = dict(inspect.signature(cls).bind_partial(*args, **kwargs).arguments)
        return self

    def __init__(self, batch_size: int, num_workers: int, seed: int, image_size: int) -> None:
        super().__init__(batch_size, num_workers, seed)
        if image_size < 1:
            raise UserError(f"image_size is {image_size}: expected at least 1 px.")
        self.image_size = image_size
        self.plan_encoding: Callable[[Mapping[str, int]], Mapping[str, BatchSampler]] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the training set."""
        return len(self.class_names)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the pixels of a token cache depend on, as plain data."""

    def encoding_source(self, split: Split) -> BatchSource | None:
        """Return the samples of a split as they are to be encoded: none replaced by another."""
        return self.source(split)

    def predict_dataloader(self) -> list[ResumableLoader]:
        """Return a loader for each split that there is, train then val, in file order."""
        found = {split: self.encoding_source(split) for split in SPLITS}
        sources = {split: source for split, source in found.items() if source is not None}
        plan = (self.plan_encoding or self._share_out)(
            {split: len(source) for split, source in sources.items()}
        )
        return [self.loader(source, plan[split]) for split, source in sources.items()]

    def _share_out(self, sizes: Mapping[str, int]) -> dict[str, EncodingBatches]:
        rank, step = self.rank, self.world_size
        return {
            split: EncodingBatches([range(rank, size, step)], range(1), self.device_batch_size)
            for split, size in sizes.items()
        }
