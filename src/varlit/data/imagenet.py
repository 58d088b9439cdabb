"""ImageNet in any format, found by an environment variable."""

import os
from pathlib import Path
from typing import Literal

from varlit.data.crops import CentreCrop
from varlit.data.formats.folders import IMAGE_SUFFIXES
from varlit.data.images import ImageDataModule
from varlit.errors import UserError

ROOT_VARIABLE = "IMAGENET_DIR"
DEFAULT_ROOT = "data/imagenet"
KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"


class ImageNetDataModule(ImageDataModule):
    """ImageNet as folders, root/train/n01440764/*.JPEG and root/val/n01440764/*.JPEG, or packed.

    Args:
        root: Folder with train and val (that of Kaggle's archive too), or another source
            (docs/your-data.md); by default $IMAGENET_DIR, else data/imagenet.
        image_size: Side of the square crop in pixels.
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read images, for each device.
        val_root: Images to validate on, where they do not lie beside the training images.
        resize_ratio: The shorter side becomes this times image_size, then the crop is cut.
        horizontal_flip: Mirror half of the training images.
        centre_crop: Centre crops as VAR makes them, or as ADM does (for comparable metrics).
        jpeg_draft: Decode large JPEGs at half their size or less: faster, a little softer.
        on_bad_image: Skip images that cannot be read (each is named and listed once), or stop.
        max_bad_share: Part of the images that may be skipped before the run stops.
        small_images: Upscale images whose shorter side is below image_size, as every published
            result does, or skip them.
        shuffle_buffer: Images that wait in the memory of each process to be mixed, where shards
            are streamed; without effect elsewhere.
        seed: Seed of order and crops.

    Raises:
        UserError: If ImageNet is not there; says what to set, and what needs no download.
    """

    def __init__(
        self,
        root: str = "",
        image_size: int = 256,
        batch_size: int = 256,
        num_workers: int = 8,
        val_root: str = "",
        resize_ratio: float = 1.125,
        horizontal_flip: bool = False,
        centre_crop: CentreCrop = "var",
        jpeg_draft: bool = False,
        on_bad_image: Literal["skip", "stop"] = "skip",
        max_bad_share: float = 0.001,
        small_images: Literal["skip", "upscale"] = "upscale",
        shuffle_buffer: int = 5000,
        seed: int = 0,
    ) -> None:
        root = _find(root)
        _refuse_unsorted(Path(root).expanduser(), val_root)
        super().__init__(
            root=root,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            val_root=val_root,
            resize_ratio=resize_ratio,
            horizontal_flip=horizontal_flip,
            centre_crop=centre_crop,
            jpeg_draft=jpeg_draft,
            on_bad_image=on_bad_image,
            max_bad_share=max_bad_share,
            small_images=small_images,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
        )


def _find(root: str) -> str:
    """Find ImageNet where no root is given, and the images within what Kaggle hands out."""
    root = root or os.environ.get(ROOT_VARIABLE, "")
    if not root and not Path(DEFAULT_ROOT).is_dir():
        raise UserError(
            f"ImageNet not found: no folder '{DEFAULT_ROOT}'. Set {ROOT_VARIABLE} (or data.root) "
            "to a folder with train/<class>/ and val/<class>/; CONF=digits is the recipe that "
            "needs no download."
        )
    nested = Path(root or DEFAULT_ROOT).expanduser() / KAGGLE_FOLDER
    return str(nested) if (nested / "train").is_dir() else root or DEFAULT_ROOT


def _refuse_unsorted(root: Path, val_root: str) -> None:
    """Refuse a folder without validation images, or where they lie side by side as ILSVRC's do."""
    val = Path(val_root).expanduser() if val_root else root / "val"
    if not val_root and (root / "train").is_dir() and not any(root.glob("val*")):
        raise UserError(
            f"ImageNet not found: no folder '{val}' beside train: add it, or set data.val_root."
        )
    if not val.is_dir():
        return
    num_images = 0
    with os.scandir(val) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                return
            num_images += entry.name.lower().endswith(IMAGE_SUFFIXES)
    if num_images:
        raise UserError(
            f"'{val}' has {num_images:,} images but no class sub-folders, as ILSVRC ships them: "
            "run valprep.sh (of soumith/imagenetloader.torch on GitHub) in it, which moves each "
            "into the folder of its class."
        )
