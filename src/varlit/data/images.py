"""Images in class folders: the batches of a tree, and the data module of your own images."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from varlit.data.decoding import BrokenImageError, SquareCrop, read_rgb, read_size
from varlit.data.formats.folders import ClassFolders, hold_out, list_class_folders
from varlit.data.loader import NOTES
from varlit.data.module import LabelledImageDataModule
from varlit.data.order import BatchIndex
from varlit.errors import UserError

MAX_BROKEN_IN_A_ROW = 100
NUM_PROBED_HEADERS = 1000


class ImageFolderDataset:
    """Batches of a class-folder tree: image (B, 3, H, W) in [-1, 1], label, id, crop.

    Args:
        tree: The files.
        crop: The geometry.
        on_broken: "replace" takes the next good image in file order instead and reports the
            broken one; "mark" keeps the row, black, under the id `-1 - id`, so that a token cache
            can leave it out; "stop" refuses.
        small_images: "refuse" or "upscale" images whose shorter side is below the crop.
    """

    def __init__(
        self,
        tree: ClassFolders,
        crop: SquareCrop,
        on_broken: Literal["replace", "mark", "stop"],
        small_images: Literal["refuse", "upscale"],
    ) -> None:
        self.tree, self.crop = tree, crop
        self.on_broken, self.small_images = on_broken, small_images

    def __len__(self) -> int:
        return len(self.tree)

    def __getitem__(self, index: BatchIndex) -> dict[str, Any]:
        """Read one batch.

        Raises:
            UserError: If an image is refused.
        """
        notes: list[tuple[str, str]] = []
        side = self.crop.image_size
        pixels = np.zeros((len(index.ids), side, side, 3), dtype=np.uint8)  # B, h, w, 3
        ids = index.ids.copy()  # B
        pairs = zip(index.ids.tolist(), index.views.tolist(), strict=True)
        for row, (sample_id, view) in enumerate(pairs):
            ids[row] = self._fill(pixels[row], sample_id, view, notes)
        labels = self.tree.labels[np.where(ids < 0, -1 - ids, ids)]  # B
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # B, 3, h, w
        batch = {
            "image": images.to(torch.float32).div_(127.5).sub_(1.0),
            "label": torch.from_numpy(labels),
            "id": torch.from_numpy(ids),
            "crop": torch.from_numpy(index.views),
        }
        return batch | {NOTES: notes} if notes else batch

    def _fill(
        self, pixels: np.ndarray, sample_id: int, view: int, notes: list[tuple[str, str]]
    ) -> int:
        """Read one image into `pixels` and return the id under which it goes."""
        for distance in range(min(MAX_BROKEN_IN_A_ROW, len(self))):
            row = (sample_id + distance) % len(self)
            path = self.tree.path(row)
            try:
                image = read_rgb(path)
            except BrokenImageError as error:
                if self.on_broken == "stop":
                    raise UserError(
                        f"cannot read the image '{path}' ({error}): repair or remove it, or set "
                        "on_bad_image to skip."
                    ) from error
                notes.append((str(path), f"skipped the broken image '{path}' ({error})."))
                if self.on_broken == "mark":
                    return -1 - sample_id
                continue
            if min(image.size) < self.crop.image_size:
                self._check_small(path, image.size, notes)
            pixels[:] = self.crop(image, row, view)
            return row
        raise UserError(
            f"{min(MAX_BROKEN_IN_A_ROW, len(self))} images in a row cannot be read, from "
            f"'{self.tree.path(sample_id)}' on: check the disk and the files."
        )

    def _check_small(self, path: Path, size: tuple[int, int], notes: list[tuple[str, str]]) -> None:
        if self.small_images == "refuse":
            raise UserError(_too_small(path, size, self.crop.image_size))
        sentence = (
            f"enlarging '{path}' ({size[0]}x{size[1]} px) to the crop of {self.crop.image_size} "
            "px, and every smaller image after it, because small_images is upscale."
        )
        notes.append(("small images", sentence))


class ImageDataModule(LabelledImageDataModule):
    """Your own images, in class folders.

    Either root/train/<class>/ and root/val/<class>/, or root/<class>/ alone, of which a part that
    depends on the file names alone is held out. A class's label is the place of its folder's name
    in sorted order.

    Args:
        root: Folder of the images.
        image_size: Side of the square crop in pixels.
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read images, for each device.
        val_fraction: Part held out for validation where there is no val folder; 0 for none.
        resize_ratio: The shorter side becomes this times image_size, then the crop is cut.
        horizontal_flip: Mirror half of the training images.
        on_bad_image: Skip images that cannot be read (each is named once), or stop.
        small_images: Refuse images whose shorter side is below image_size, or upscale them.
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
        val_fraction: float = 0.05,
        resize_ratio: float = 1.125,
        horizontal_flip: bool = False,
        on_bad_image: Literal["skip", "stop"] = "skip",
        small_images: Literal["refuse", "upscale"] = "refuse",
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
        self.root = Path(root).expanduser()
        self.on_bad_image, self.small_images = on_bad_image, small_images
        self.crop = SquareCrop(image_size, resize_ratio, horizontal_flip, seed)
        self.trees = _list_splits(self.root, val_fraction)
        self.class_names = self.trees["train"].class_names
        if small_images == "refuse":
            for tree in self.trees.values():
                _refuse_small_images(tree, image_size)

    def source(self, split: Literal["train", "val"]) -> ImageFolderDataset | None:
        """Return a split's images; None if there is no validation set."""
        return self._dataset(split, "replace")

    def encoding_source(self, split: Literal["train", "val"]) -> ImageFolderDataset | None:
        """Return a split's images with broken ones marked and not replaced."""
        return self._dataset(split, "mark")

    def describe(self) -> dict[str, Any]:
        """Return what the pixels of a token cache depend on, as plain data."""
        return {
            "image_size": self.image_size,
            "resize_ratio": self.crop.resize_ratio,
            "horizontal_flip": self.crop.horizontal_flip,
            "seed": self.seed,
            "files": {split: tree.digest() for split, tree in self.trees.items()},
        }

    def _dataset(
        self, split: str, on_broken: Literal["replace", "mark"]
    ) -> ImageFolderDataset | None:
        if split not in self.trees:
            return None
        broken: Literal["replace", "mark", "stop"]
        broken = "stop" if self.on_bad_image == "stop" else on_broken
        return ImageFolderDataset(self.trees[split], self.crop, broken, self.small_images)


def _list_splits(root: Path, val_fraction: float) -> dict[str, ClassFolders]:
    if (root / "train").is_dir():
        train = list_class_folders(root / "train")
        if (root / "val").is_dir():
            return {"train": train, "val": list_class_folders(root / "val", train.class_names)}
    elif (root / "val").is_dir():
        raise UserError(f"'{root}' has a val folder but no train folder beside it: add one.")
    else:
        train = list_class_folders(root)
    if val_fraction == 0:
        return {"train": train}
    train, val = hold_out(train, val_fraction)
    return {"train": train, "val": val}


def _refuse_small_images(tree: ClassFolders, image_size: int) -> None:
    """Refuse small images before the run starts, as far as some headers tell."""
    rows = np.unique(np.linspace(0, len(tree) - 1, NUM_PROBED_HEADERS).astype(np.int64)).tolist()
    small = []
    for row in rows:
        try:
            size = read_size(tree.path(row))
        except BrokenImageError:
            continue  # reported, with the setting's consequence, when the image is read
        if min(size) < image_size:
            small.append((tree.path(row), size))
    if small:
        raise UserError(
            f"{len(small)} of {len(rows)} images looked at are too small: "
            + _too_small(*small[0], image_size)
        )


def _too_small(path: Path, size: tuple[int, int], image_size: int) -> str:
    return (
        f"'{path}' is {size[0]}x{size[1]} px, the crop {image_size} px. Use a smaller image_size, "
        "remove such images, or set small_images to upscale."
    )
