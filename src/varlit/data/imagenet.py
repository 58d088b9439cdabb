"""ImageNet: the class folders of ILSVRC 2012, found by an environment variable."""

import os
from pathlib import Path
from typing import Literal

from varlit.data.images import ImageDataModule
from varlit.errors import UserError

ROOT_VARIABLE = "IMAGENET_DIR"
DEFAULT_ROOT = "data/imagenet"


class ImageNetDataModule(ImageDataModule):
    """ImageNet in the usual layout: root/train/n01440764/*.JPEG and root/val/n01440764/*.JPEG.

    Args:
        root: Folder with train and val; by default $IMAGENET_DIR, else data/imagenet.
        image_size: Side of the square crop in pixels.
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read images, for each device.
        resize_ratio: The shorter side becomes this times image_size, then the crop is cut.
        horizontal_flip: Mirror half of the training images.
        on_bad_image: Skip images that cannot be read (each is named once), or stop.
        small_images: Upscale images whose shorter side is below image_size, as every published
            result does, or refuse them.
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
        resize_ratio: float = 1.125,
        horizontal_flip: bool = False,
        on_bad_image: Literal["skip", "stop"] = "skip",
        small_images: Literal["refuse", "upscale"] = "upscale",
        seed: int = 0,
    ) -> None:
        root = root or os.environ.get(ROOT_VARIABLE, "") or DEFAULT_ROOT
        for split in ("train", "val"):
            if not (Path(root).expanduser() / split).is_dir():
                raise UserError(
                    f"ImageNet not found: no folder '{Path(root) / split}'. Set {ROOT_VARIABLE} "
                    "(or data.root) to a folder with train/<class>/ and val/<class>/; "
                    "CONF=digits is the recipe that needs no download."
                )
        super().__init__(
            root=root,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            resize_ratio=resize_ratio,
            horizontal_flip=horizontal_flip,
            on_bad_image=on_bad_image,
            small_images=small_images,
            seed=seed,
        )
