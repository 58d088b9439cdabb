"""Your own images as batches: the data module of every format that `varlit.data.formats` reads."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from varlit.data.bad_files import FEWEST, BadFiles
from varlit.data.crops import CentreCrop, SquareCrop
from varlit.data.decoding import BrokenImageError, read_size
from varlit.data.formats.encoded import EncodedImages, digest
from varlit.data.formats.remote import RemoteShards, open_streamed
from varlit.data.formats.splits import is_remote, open_splits
from varlit.data.image_source import Handling, ImageSource, too_small
from varlit.data.loader import BatchSource, ResumableLoader
from varlit.data.module import LabelledImageDataModule
from varlit.data.order import BatchSampler, EpochBatchSampler
from varlit.data.stream_loader import StreamLoader
from varlit.data.stream_order import ShardSampler
from varlit.data.stream_source import StreamSource
from varlit.errors import UserError

NUM_PROBED_HEADERS = 1000


class ImageDataModule(LabelledImageDataModule):
    """Your own images, in class folders.

    Either root/train/<class>/ and root/val/<class>/, or root/<class>/ alone, of which a part that
    depends on the file names alone is held out. A class's label is the place of its folder's name
    in sorted order.

    Args:
        root: Folder of the images, or another source (docs/your-data.md).
        image_size: Side of the square crop in pixels.
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read images, for each device.
        val_root: Images to validate on, where they do not lie beside the training images.
        val_fraction: Part held out for validation where there is no such set; 0 for none.
        resize_ratio: The shorter side becomes this times image_size, then the crop is cut.
        horizontal_flip: Mirror half of the training images.
        centre_crop: Centre crops as VAR makes them, or as ADM does (for comparable metrics).
        jpeg_draft: Decode large JPEGs at half their size or less: faster, a little softer.
        on_bad_image: Skip images that cannot be read (each is named and listed once), or stop.
        max_bad_share: Part of the images that may be skipped before the run stops.
        small_images: Skip images whose shorter side is below image_size, or upscale them.
        shuffle_buffer: Images that wait in the memory of each process to be mixed, where shards
            are streamed; without effect elsewhere.
        seed: Seed of order and crops.

    Raises:
        UserError: If the folder does not hold what is expected.
    """

    def __init__(
        self,
        root: str = "",
        image_size: int = 256,
        batch_size: int = 64,
        num_workers: int = 4,
        val_root: str = "",
        val_fraction: float = 0.05,
        resize_ratio: float = 1.125,
        horizontal_flip: bool = False,
        centre_crop: CentreCrop = "var",
        jpeg_draft: bool = False,
        on_bad_image: Literal["skip", "stop"] = "skip",
        max_bad_share: float = 0.001,
        small_images: Literal["skip", "upscale"] = "skip",
        shuffle_buffer: int = 5000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, image_size)
        if not root:
            raise UserError("no image folder: set data.root to a folder of class sub-folders.")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction is {val_fraction}: expected 0 (none) to below 1.")
        if resize_ratio < 1:
            raise UserError(
                f"resize_ratio is {resize_ratio}: expected at least 1, or the crop does not fit."
            )
        if not 0 <= max_bad_share <= 1:
            raise UserError(f"max_bad_share is {max_bad_share}: expected 0 (none) to 1 (all).")
        if shuffle_buffer < 0:
            raise UserError(f"shuffle_buffer is {shuffle_buffer}: expected 0 (none) or more.")
        self.root, self.max_bad_share, self.jpeg_draft = root, max_bad_share, jpeg_draft
        self.on_bad_image, self.small_images = on_bad_image, small_images
        self.crop = SquareCrop(image_size, resize_ratio, horizontal_flip, seed, centre_crop)
        self.shuffle_buffer = shuffle_buffer
        self.splits = _open(root, val_root, val_fraction)
        self.class_names = self.splits["train"].class_names
        if small_images == "skip":
            for images in self.splits.values():
                if not isinstance(images, RemoteShards):
                    _refuse_small_images(images, image_size, max_bad_share)

    def source(self, split: Literal["train", "val"]) -> ImageSource | StreamSource | None:
        """Return a split's images; None if there is no validation set."""
        return self._source(split, "replace", whole=False)

    def encoding_source(self, split: Literal["train", "val"]) -> ImageSource | StreamSource | None:
        """Return a split's images with broken ones marked and not replaced."""
        return self._source(split, "mark", whole=True)

    def train_sampler(self, source: BatchSource) -> EpochBatchSampler:
        """Return the order of training: for a stream one that shards can be read in."""
        if not isinstance(source, StreamSource):
            return super().train_sampler(source)
        return ShardSampler(
            source.shards.counts,
            self.shuffle_buffer,
            self.batch_size,
            self.rank,
            self.world_size,
            self.accumulation,
            self.seed,
            shuffle=not self._is_overfitting,
        )

    def loader(self, source: BatchSource, sampler: BatchSampler) -> ResumableLoader:
        """Return a loader with this module's workers, which for a stream decode only."""
        if not isinstance(source, StreamSource):
            return super().loader(source, sampler)
        return StreamLoader(
            source,
            sampler,
            self.num_workers,
            self.bad_files(source),
            self.world_size,
            self.shuffle_buffer,
        )

    def bad_files(self, source: BatchSource) -> BadFiles | None:
        """Return the list of bad files of the run that the trainer is at, or of no run."""
        folder = Path(self.trainer.default_root_dir) if self.trainer is not None else None
        num_images = sum(map(len, self.splits.values()))
        return BadFiles(folder, num_images, self.max_bad_share)

    def describe(self) -> dict[str, Any]:
        """Return what the pixels of a token cache depend on, as plain data."""
        return {
            "image_size": self.image_size,
            "resize_ratio": self.crop.resize_ratio,
            "resample": "lanczos",
            "centre_crop": self.crop.centre_crop,
            "jpeg_draft": self.jpeg_draft,
            "horizontal_flip": self.crop.horizontal_flip,
            "small_images": self.small_images,
            "view_rule": "crop 0 = centre; crop a = splitmix64(seed, image id, a)",
            "seed": self.seed,
            "files": {split: _digest(images) for split, images in self.splits.items()},
        }

    def _source(
        self, split: str, broken: Literal["replace", "mark"], whole: bool
    ) -> ImageSource | StreamSource | None:
        if split not in self.splits:
            return None
        handling = Handling(
            broken="stop" if self.on_bad_image == "stop" else broken,
            small=self.small_images,
            draft=self.jpeg_draft,
            whole=whole,
        )
        images = self.splits[split]
        if isinstance(images, RemoteShards):
            return StreamSource(images, self.crop, handling)
        return ImageSource(images, self.crop, handling)


def _open(root: str, val_root: str, val_fraction: float) -> dict[str, EncodedImages | RemoteShards]:
    if is_remote(root) or is_remote(val_root):
        return open_streamed(root, val_root, val_fraction)
    return {**open_splits(root, val_root, val_fraction)}


def _digest(images: EncodedImages | RemoteShards) -> str:
    return images.digest() if isinstance(images, RemoteShards) else digest(images)


def _refuse_small_images(images: EncodedImages, image_size: int, max_bad_share: float) -> None:
    """Refuse a set of small images before the run starts, as far as some headers tell."""
    rows = np.unique(np.linspace(0, len(images) - 1, NUM_PROBED_HEADERS).astype(np.int64)).tolist()
    small = []
    for row in rows:
        try:
            size = read_size(images.read(row))
        except (BrokenImageError, OSError):
            continue  # counted, with the setting's consequence, when the image is read
        if min(size) < image_size:
            small.append((images.where(row), size))
    if small and len(small) > max(max_bad_share * len(rows), FEWEST * len(rows) / len(images)):
        raise UserError(
            f"{len(small)} of {len(rows)} images looked at are too small: '{small[0][0]}' is "
            f"{too_small(small[0][1], image_size)}. Use a smaller image_size, remove such images, "
            "or set small_images to upscale."
        )
