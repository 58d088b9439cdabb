"""Batches of images: rows of a split read, decoded, cropped, and what is bad replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from varlit.data.bad_files import BadFile
from varlit.data.crops import SquareCrop
from varlit.data.decoding import BrokenImageError, read_rgb
from varlit.data.draws import PLAIN_VIEW, draw_below
from varlit.data.formats.encoded import Encoded, EncodedImages
from varlit.data.loader import BAD_FILES, NOTES
from varlit.data.order import BatchIndex
from varlit.data.worker_deaths import note_reading
from varlit.errors import UserError

MAX_TRIES = 100


@dataclass(frozen=True)
class Handling:
    """What is done with images that are not as they should be.

    Attributes:
        broken: "replace" takes another image of the split, drawn by (seed, id, view); "mark"
            keeps the row, black, under the id `-1 - id`, so that a token cache can leave it out;
            "stop" refuses.
        small: Images whose shorter side is below the crop: "skip" treats them as broken, "upscale"
            enlarges them.
        draft: Decode a JPEG at a half, a quarter or an eighth where it is at least twice as large
            as needed.
        whole: Decode and resize an image once for all its views, as an encoding with many crops
            wants it; otherwise a random view is resized by itself, see `SquareCrop.cut_directly`.
    """

    broken: Literal["replace", "mark", "stop"] = "replace"
    small: Literal["skip", "upscale"] = "skip"
    draft: bool = False
    whole: bool = False


class CroppedImages(ABC):
    """Batches of a split: image (B, 3, H, W) in [-1, 1], label, id, crop.

    Args:
        crop: The geometry.
        handling: What is done with bad images.
    """

    def __init__(self, crop: SquareCrop, handling: Handling) -> None:
        self.crop, self.handling = crop, handling
        self._last: tuple[int, Image.Image, Image.Image | None] | None = None

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the images come from, as the user wrote it."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, row: int) -> Encoded:
        """Return an image as it is stored; OSError if it cannot be had."""

    @abstractmethod
    def where(self, row: int) -> str:
        """Return where a person finds an image."""

    @abstractmethod
    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of rows, (B,) int64."""

    @abstractmethod
    def other(self, sample_id: int, view: int, attempt: int) -> int:
        """Draw the row of an image to take instead of one that is broken."""

    def bad_file(self, row: int, reason: str) -> BadFile:
        """Return how a broken image is listed."""
        return BadFile(self.where(row), reason)

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Read one batch.

        Raises:
            UserError: If an image is refused.
        """
        bad: list[BadFile] = []
        notes: list[tuple[str, str]] = []
        side = self.crop.image_size
        pixels = np.zeros((len(index.ids), side, side, 3), dtype=np.uint8)  # B, h, w, 3
        ids = index.ids.copy()  # B
        pairs = zip(index.ids.tolist(), index.views.tolist(), strict=True)
        for row, (sample_id, view) in enumerate(pairs):
            ids[row] = self._fill(pixels[row], sample_id, view, bad, notes)
        self._last = None
        labels = self.labels(np.where(ids < 0, -1 - ids, ids))  # B
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # B, 3, h, w
        batch = {
            "image": images.to(torch.float32).div_(127.5).sub_(1.0),
            "label": torch.from_numpy(labels),
            "id": torch.from_numpy(ids),
            "crop": torch.from_numpy(index.views),
        }
        return batch | ({NOTES: notes} if notes else {}) | ({BAD_FILES: bad} if bad else {})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def _fill(
        self,
        pixels: np.ndarray,
        sample_id: int,
        view: int,
        bad: list[BadFile],
        notes: list[tuple[str, str]],
    ) -> int:
        """Read one image into `pixels` and return the id under which it goes."""
        for attempt in range(MAX_TRIES):
            row = self.other(sample_id, view, attempt) if attempt else sample_id
            try:
                pixels[:] = self._view(row, view, notes)
                return row
            except BrokenImageError as error:
                if self.handling.broken == "stop":
                    raise UserError(
                        f"cannot use the image '{self.where(row)}' ({error}): repair or remove "
                        "it, or set on_bad_image to skip."
                    ) from error
                bad.append(self.bad_file(row, str(error)))
                if self.handling.broken == "mark":
                    return -1 - sample_id
        raise UserError(
            f"{MAX_TRIES} images of {self.place} in a row cannot be used, the first being "
            f"'{self.where(sample_id)}' ({bad[0].reason}): check the disk and the files."
        )

    def _view(self, row: int, view: int, notes: list[tuple[str, str]]) -> np.ndarray:
        if not self.handling.whole:
            cut = self.crop if view == PLAIN_VIEW else self.crop.cut_directly
            return cut(self._decode(row, notes), row, view)
        if self._last is None or self._last[0] != row:
            image = self._decode(row, notes)
            self._last = (row, image, self.crop.resize(image))
        return self.crop.cut(self._last[1], self._last[2], row, view)

    def _decode(self, row: int, notes: list[tuple[str, str]]) -> Image.Image:
        note_reading(self.where(row))
        try:
            encoded = self.read(row)
        except OSError as error:
            raise BrokenImageError(error.strerror or str(error)) from error
        image = read_rgb(encoded, 2 * self.crop.resized_px if self.handling.draft else 0)
        if min(image.size) < self.crop.image_size:
            self._note_small(row, image.size, notes)
        return image

    def _note_small(self, row: int, size: tuple[int, int], notes: list[tuple[str, str]]) -> None:
        if self.handling.small == "skip":
            raise BrokenImageError(too_small(size, self.crop.image_size))
        sentence = (
            f"enlarging '{self.where(row)}' ({size[0]}x{size[1]} px) to the crop of "
            f"{self.crop.image_size} px, and every smaller image after it, because small_images "
            "is upscale."
        )
        notes.append(("small images", sentence))


class ImageSource(CroppedImages):
    """Batches of images in random access.

    Args:
        images: The split.
        crop: The geometry.
        handling: What is done with bad images.
    """

    def __init__(self, images: EncodedImages, crop: SquareCrop, handling: Handling) -> None:
        super().__init__(crop, handling)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def place(self) -> str:
        """Where the images come from, as the user wrote it."""
        return self.images.place

    def read(self, row: int) -> Encoded:
        """Return an image as it is stored."""
        return self.images.read(row)

    def where(self, row: int) -> str:
        """Return where a person finds an image."""
        return self.images.where(row)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of rows."""
        return self.images.labels[rows]

    def other(self, sample_id: int, view: int, attempt: int) -> int:
        """Draw any row: a broken image's neighbours share its folder, or its shard."""
        return int(draw_below(len(self), self.crop.seed, sample_id, view, attempt)[0])


def too_small(size: tuple[int, int], image_size: int) -> str:
    """Say that an image does not hold the crop."""
    return f"{size[0]}x{size[1]} px, smaller than the crop of {image_size} px"
