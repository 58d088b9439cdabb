"""From what a user writes as a reference to the features of real images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varlit.data.bad_files import BadFiles
from varlit.data.crops import SquareCrop
from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.folders import IMAGE_SUFFIXES, ClassFolders
from varlit.data.formats.splits import is_remote, open_splits
from varlit.data.image_source import Handling, ImageSource
from varlit.data.loader import BatchSource, ResumableLoader
from varlit.data.module import SPLITS
from varlit.data.order import EncodingBatches
from varlit.data.progress import Progress
from varlit.data.tokens.manifest import read_manifest
from varlit.data.tokens.verification import reopen_images
from varlit.errors import UserError
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.ranks import in_all, place_among_ranks
from varlit.metrics.references import (
    Reference,
    cached_reference,
    check_reference,
    read_reference,
)
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.reference_content import source_content

DATA = "data"
_MAX_BAD_SHARE = 0.001


def check_given(config: EvaluationConfig, cache: Path | None, flag: str) -> list[str]:
    """What is wrong with the references at first sight, in words; before a network is opened.

    Args:
        config: What the user asked for.
        cache: The token cache whose images `data` means.
        flag: How the user gives references.
    """
    if not config.references:
        return [
            f"a distance needs real images: give {flag} FILE.npz, such as ADM's "
            "VIRTUAL_imagenet256_labeled.npz, or a folder of images, or data:val for those behind "
            "the token cache"
        ]
    wrong = []
    for place in config.references:
        if place.partition(":")[0] == DATA and cache is None:
            wrong.append(f"{flag} {place}: the token cache of this model is not known; give a file")
        elif place.endswith(".npz") and not Path(place).expanduser().is_file():
            wrong.append(f"{flag} {place}: no such file")
    return wrong


def open_references(
    config: EvaluationConfig,
    network: FeatureNetwork,
    image_px: int,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> tuple[Reference, ...]:
    """The references, computed where they are not cached; every process must call it.

    Args:
        config: Which.
        network: What looks at them.
        image_px: Side of the samples.
        device: Where.
        cache: The token cache whose images `data` means.

    Raises:
        UserError: If one is not to be had, or does not fit.
    """
    found = []
    for place in config.references:
        if place.endswith(".npz"):
            reference = read_reference(
                place, network, device, config.batch_size, config.reference_rows
            )
        else:
            reference = _of_images(place, config, network, image_px, device, cache)
        check_reference(reference, network, image_px, allow_few=bool(config.quick))
        found.append(reference)
    return tuple(found)


@dataclass(frozen=True)
class _Images:
    """Real images, not yet looked at.

    Attributes:
        name: For people.
        source: All of them, cut.
        cut: All that pixels depend on besides the bytes of the images, as plain data.
        bad: Where files are counted that cannot be read.
    """

    name: str
    source: BatchSource
    cut: dict[str, Any]
    bad: BadFiles | None


def _of_images(
    place: str,
    config: EvaluationConfig,
    network: FeatureNetwork,
    image_px: int,
    device: torch.device | str,
    cache: Path | None,
) -> Reference:
    """The reference of images that are cut here, known by their bytes and by the cut."""

    def find() -> _Images:
        if place.partition(":")[0] == DATA:
            return _of_cache(place, cache)
        return _of_folder(place, image_px)

    images = in_all(find)
    about = {"content": source_content(images.source, images.name), "cut": images.cut}
    gather = _gatherer(images, config, device)
    return cached_reference(images.name, _hashed(about), network, gather, config.reference_rows)


def _gatherer(
    images: _Images, config: EvaluationConfig, device: torch.device | str
) -> Callable[[ImageFeatures], None]:
    def gather(features: ImageFeatures) -> None:
        batches, name = _loader(images.source, config, images.bad), images.name
        progress = Progress(f"looking at the reference {name}, in batches", max(1, len(batches)))
        for batch in batches:
            is_whole = batch["id"] >= 0  # a file that cannot be read is marked so
            features.update(batch["id"][is_whole], batch["image"][is_whole].to(device))
            progress.add()
        progress.end()

    return gather


def _of_cache(place: str, cache: Path | None) -> _Images:
    """The images behind a token cache, cut as its tokenizer saw them."""
    split = place.partition(":")[2] or "val"
    if split not in SPLITS:
        raise UserError(f"reference {place}: expected data:train or data:val")
    if cache is None:
        raise UserError(f"reference {place}: the token cache of this model is not known")
    try:
        module = reopen_images(read_manifest(cache))
    except UserError as error:
        reason = str(error).removesuffix(" Where the images are now: --data PATH.")
        raise UserError(
            f"reference {place}: {reason} Or give the images themselves as the reference"
        ) from error
    source = module.encoding_source(split)
    if source is None:
        raise UserError(f"reference {place}: the data have no held-out part; give data:train")
    # Names of files, of both splits, are nothing that pixels depend on.
    cut = {key: value for key, value in module.describe().items() if key != "files"}
    name = f"{getattr(module, 'root', '') or type(module).__name__} {split}"
    about = {"data": cut, "kind": type(module).__name__}
    return _Images(name, source, about, module.bad_files(source))


def _of_folder(place: str, image_px: int) -> _Images:
    """Images in a folder, or any other format, by ADM's centre crop."""
    root, _, suffix = place.rpartition(":")
    split = suffix if suffix in SPLITS and root else ""
    root = root if split else place
    images = _images(root, split)
    crop = SquareCrop(image_px, 1.0, False, 0, "adm")
    source = ImageSource(images, crop, Handling(broken="mark", small="upscale"))
    bad = BadFiles(None, len(images), _MAX_BAD_SHARE)
    name = f"{root}{' ' * bool(split)}{split} ({image_px} px, ADM's centre crop)"
    return _Images(name, source, {"px": image_px, "crop": "adm"}, bad)


def _images(root: str, split: str) -> EncodedImages:
    if is_remote(root):
        raise UserError(f"reference {root}: streams are not read; give a folder or a file")
    folder = Path(root).expanduser()
    names = []
    if folder.is_dir():
        names = sorted(p.name for p in folder.iterdir() if p.name.lower().endswith(IMAGE_SUFFIXES))
    if names:  # images without classes, such as those of another program
        encoded = np.array([name.encode() for name in names])
        return ClassFolders(folder, ("all",), encoded, np.zeros(len(names), dtype=np.int64))
    found = open_splits(root)
    if not split and len(found) > 1:
        raise UserError(f"reference {root} has a train and a val part; say {root}:train or :val")
    if split and split not in found:
        raise UserError(f"reference {root}:{split}: there is no such part; got {sorted(found)}")
    return found[split or "train"]


def _loader(source: BatchSource, config: EvaluationConfig, bad: BadFiles | None) -> ResumableLoader:
    """This process's batches; what is in a batch does not depend on the number of processes."""
    rank, world_size = place_among_ranks()
    size, count = config.batch_size, len(source)
    starts = list(range(0, count, size))[rank::world_size]
    shards = [range(start, min(start + size, count)) for start in starts]
    batches = EncodingBatches(shards, range(1), size)
    num_workers = min(config.reference_workers, os.cpu_count() or 1)
    return ResumableLoader(source, batches, num_workers, bad)


def _hashed(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
