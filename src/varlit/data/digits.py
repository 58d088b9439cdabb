"""The 1,797 handwritten digits inside scikit-learn: real images that need no download."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from varlit.data.module import LabelledImageDataModule
from varlit.data.order import BatchIndex
from varlit.errors import UserError

NUM_TRAIN = 1500
NATIVE_SIDE_PX = 8


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits as RGB images in [-1, 1], in scikit-learn's order.

    Attributes:
        train_images: (1500, 3, H, W) float32, the first 1,500.
        train_labels: (1500,) int64.
        test_images: (297, 3, H, W) float32, the rest.
        test_labels: (297,) int64.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(image_size: int = 32) -> Digits:
    """Load the UCI optical digits that ship with scikit-learn, bicubically enlarged from 8x8.

    Args:
        image_size: Side H = W in pixels, at least 8.

    Raises:
        UserError: If `image_size` is below 8.
    """
    if image_size < NATIVE_SIDE_PX:
        raise UserError(f"image_size is {image_size}: the digits are 8x8 px, expected at least 8.")
    from sklearn import datasets

    bunch = datasets.load_digits()
    small = torch.from_numpy(bunch.images).to(torch.float32)[:, None] / 8.0 - 1.0  # B, 1, 8, 8
    size = (image_size, image_size)
    large = functional.interpolate(small, size, mode="bicubic", align_corners=False)
    # Bicubic overshoots; of all enlargements it comes nearest to the 8x8 ink when averaged back.
    images = large.clamp(-1, 1).expand(-1, 3, -1, -1).contiguous()  # B, 3, h, w
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return Digits(images[:NUM_TRAIN], labels[:NUM_TRAIN], images[NUM_TRAIN:], labels[NUM_TRAIN:])


class TensorImages:
    """Batches of images that lie in memory as one tensor, gathered in one call.

    Args:
        images: (N, 3, H, W).
        labels: (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Gather a batch; all views of an image are the image."""
        ids = torch.from_numpy(index.ids)  # B
        return {
            "image": self.images[ids],
            "label": self.labels[ids],
            "id": ids,
            "crop": torch.from_numpy(index.views),
        }


class DigitsDataModule(LabelledImageDataModule):
    """Handwritten digits: 1,500 to train on, 297 to validate on.

    Args:
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read data; memory needs none.
        seed: Seed of the order.
        image_size: Side of the images in pixels, at least 8.
    """

    has_random_views = False

    def __init__(
        self, batch_size: int = 64, num_workers: int = 0, seed: int = 0, image_size: int = 32
    ) -> None:
        super().__init__(batch_size, num_workers, seed, image_size)
        self.class_names = tuple("0123456789")
        if image_size < NATIVE_SIDE_PX:
            raise UserError(f"image_size is {image_size}: expected at least {NATIVE_SIDE_PX}.")

    @cached_property
    def digits(self) -> Digits:
        """The images, loaded at first use."""
        return load_digits(self.image_size)

    def source(self, split: Literal["train", "val"]) -> TensorImages:
        """Return the first 1,500 digits or the other 297."""
        digits = self.digits
        if split == "train":
            return TensorImages(digits.train_images, digits.train_labels)
        return TensorImages(digits.test_images, digits.test_labels)

    def describe(self) -> dict[str, Any]:
        """Return what the pixels of a token cache depend on, as plain data."""
        return {"dataset": "sklearn digits", "image_size": self.image_size, "resize": "bicubic"}
