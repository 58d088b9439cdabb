"""Checking a cache against the images that it was made from: some are encoded again, bit for bit.

Images are encoded again in the very batches of the first time, because a convolution rounds
otherwise in a batch of another size. So a sample consists of whole batches.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from varlit.data.image_source import ImageSource
from varlit.data.loader import BatchSource
from varlit.data.module import SPLITS, LabelledImageDataModule, Split
from varlit.data.order import BatchIndex
from varlit.data.tokens.manifest import TOKENIZER_FOLDER, Manifest
from varlit.data.tokens.reader import load_array
from varlit.data.tokens.rounding import describe_encoder, fixed_rounding
from varlit.errors import UserError
from varlit.models.files import load_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE

OWN_MODULES = "varlit."
"""A cache is data: it may name one of varlit's classes to read its images, and no other code."""
COMMAND = "pipe:"


@dataclass(frozen=True)
class Comparison:
    """What encoding again has shown.

    Attributes:
        num_images: Images that were encoded again.
        different: Names of those whose tokens or label differ from the cached ones.
        remark: In what this machine differs from the first one; empty where it does not.
    """

    num_images: int
    different: tuple[str, ...]
    remark: str

    @property
    def num_equal(self) -> int:
        """Images whose every token is the cached one."""
        return self.num_images - len(self.different)


def reopen_images(manifest: Manifest, root: str = "") -> LabelledImageDataModule:
    """Make the data module again that read the images of a cache.

    Args:
        manifest: The cache.
        root: Where the images are now, if they have moved.

    Raises:
        UserError: If the cache does not say what read them, or they are not the same any more.
    """
    path = str(manifest.data.get("class_path", ""))
    module, _, name = path.rpartition(".")
    if not module.startswith(OWN_MODULES):
        what = f"was read by {path}" if path else "was imported, so its images are not known"
        raise UserError(
            f"the token cache '{manifest.folder}' {what}: expected a data module of varlit. Check "
            "its files alone: --share 0."
        )
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError:
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, LabelledImageDataModule)):
        raise UserError(f"'{manifest.folder}/manifest.json' names {path}, which reads no images.")
    settings = dict(manifest.data.get("init_args", {}))
    if root:
        if name == "DigitsDataModule":
            raise UserError("the digits lie in no folder: leave out --data.")
        settings["root"] = root
    if any(str(value).strip().startswith(COMMAND) and value != root for value in settings.values()):
        raise UserError(
            f"'{manifest.folder}/manifest.json' names a command that gives the images, and a cache "
            "is not run. If the command is yours, type it: --data 'pipe:...'."
        )
    try:
        data = kind(**settings)
    except TypeError as error:
        raise UserError(
            f"'{manifest.folder}/manifest.json' has settings that this varlit does not know "
            f"({error}): check the files alone, --share 0."
        ) from error
    except UserError as error:
        raise UserError(f"{error} Where the images are now: --data PATH.") from error
    _require_same_images(manifest, data)
    return data


def encode_again(
    manifest: Manifest,
    data: LabelledImageDataModule,
    share: float,
    seed: int,
    device: str = "cpu",
    tell: Callable[[int], None] | None = None,
) -> Comparison:
    """Encode a random part of the images with the cache's own tokenizer, and compare.

    Args:
        manifest: The cache.
        data: Its images, by `reopen_images`.
        share: Part of each split, at least one batch.
        seed: Seed of the choice.
        device: Where to encode.
        tell: Gets the number of images of each batch that is done.

    Raises:
        UserError: If the cache holds another tokenizer than it was made by.
    """
    network = load_tokenizer(manifest.folder / TOKENIZER_FOLDER)
    manifest.require_tokenizer(tokenizer_hash(network))
    network.to(device)
    num_threads = int(manifest.spec.encoder.get("threads", 1))
    num_images, different = 0, list[str]()
    with fixed_rounding(num_threads):
        for split in (name for name in SPLITS if name in manifest.splits):
            source = data.encoding_source(split)
            assert source is not None, split
            for index in choose_batches(manifest, split, share, seed):
                wrong = _differing(manifest, network, source, split, index)
                different += [_name(source, split, row) for row in wrong]
                count = len(np.unique(index.ids))
                num_images += count
                if tell is not None:
                    tell(count)
    here = describe_encoder(network.last_layer.device, num_threads)
    return Comparison(num_images, tuple(different), _remark(dict(manifest.spec.encoder), here))


def choose_batches(manifest: Manifest, split: Split, share: float, seed: int) -> list[BatchIndex]:
    """Choose batches of a split at random: as many as hold the share, at least one."""
    spec = manifest.spec
    batches = spec.batches(split, list(range(spec.num_shards(split))))
    wanted, found = share * spec.num_images[split], list[BatchIndex]()
    generator = np.random.default_rng([seed, SPLITS.index(split)])
    for number in generator.permutation(len(batches)).tolist():
        found.append(batches.batch(number))
        wanted -= len(found[-1].ids) // len(batches.views)
        if wanted <= 0:
            break
    return sorted(found, key=lambda index: int(index.ids[0]))


def _differing(
    manifest: Manifest, network: VQVAE, source: BatchSource, split: Split, index: BatchIndex
) -> list[int]:
    """Return the rows of a batch that do not come out as they are in the cache."""
    batch = source[index]
    images = batch["image"].to(network.last_layer.device)
    tokens = network.encode(images).cpu().numpy()  # B, L
    spec = manifest.spec
    shard = manifest.splits[split][int(index.ids[0]) // spec.shard_size]
    ids, labels = load_array(manifest, shard, "ids"), load_array(manifest, shard, "labels")
    path = shard.path(manifest.folder, "tokens")
    cached = np.load(path, mmap_mode="r", allow_pickle=False)  # n, crops, L
    place = np.searchsorted(ids, index.ids)  # B
    was_read = np.isin(index.ids, ids)
    is_read = batch["id"].numpy() >= 0
    same = was_read == is_read
    both = np.flatnonzero(was_read & is_read)
    crops = index.views[both] - spec.views(split).start
    same[both] = (cached[place[both], crops] == tokens[both]).all(axis=1)
    same[both] &= labels[place[both]] == batch["label"].numpy()[both]
    return np.unique(index.ids[~same]).tolist()


def _require_same_images(manifest: Manifest, data: LabelledImageDataModule) -> None:
    for split in SPLITS:
        before = manifest.spec.num_images.get(split, 0)
        source = data.encoding_source(split)
        now = 0 if source is None else len(source)
        if before != now:
            raise UserError(
                f"the token cache '{manifest.folder}' was made from {before} {split} images, now "
                f"there are {now}: give the images of then, --data PATH if they have moved."
            )
    if data.describe().get("files", {}) != dict(manifest.spec.files):
        raise UserError(
            f"the images are not those of the token cache '{manifest.folder}': the list of their "
            "names and labels has changed. Give the images of then, --data PATH if they have moved."
        )


def _name(source: BatchSource, split: str, row: int) -> str:
    if isinstance(source, ImageSource):
        return source.images.where(row)
    return f"{split} image {row}"


def _remark(then: dict[str, object], now: dict[str, object]) -> str:
    """Say what may round otherwise here."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not keys:
        return ""
    changes = ", ".join(f"{key} {then.get(key)}, here {now.get(key)}" for key in keys)
    return f"encoded with {changes}: where two codes are nearly as near, another one may win"
