"""The content of a reference: one hash of all its images, read once and then remembered.

It is a hash of bytes, so a repainted image, or another folder with the same names, is another
reference. Reading is shared out over the processes. What was found is kept beside the references
themselves, by path, size and times of all files.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch

from varlit.data.digits import TensorImages
from varlit.data.formats.content import DIGEST_BYTES, hash_images, stamp
from varlit.data.formats.encoded import EncodedImages
from varlit.data.image_source import ImageSource
from varlit.data.loader import BatchSource
from varlit.data.progress import Progress
from varlit.data.stream_source import StreamSource
from varlit.data.whole_files import read_json, write_json
from varlit.errors import UserError
from varlit.metrics.ranks import in_all, place_among_ranks, sum_over_ranks
from varlit.metrics.reference_files import cache_folder

RACY_NS = 2_000_000_000
"""A file that changed so shortly ago may change again within one tick of its clock."""


def source_content(source: BatchSource, name: str) -> str:
    """A hash of all that a source holds; every process must call it.

    Args:
        source: Of a data module.
        name: Of it, for people.

    Raises:
        UserError: If it is none whose images can be hashed.
    """
    if isinstance(source, ImageSource):
        return images_content(source.images, name)
    if isinstance(source, TensorImages):
        return hashlib.sha256(source.images.numpy().tobytes()).hexdigest()
    if isinstance(source, StreamSource):  # what is streamed is known by its address and its index
        return hashlib.sha256(f"{source.place}\n{source.shards.digest()}".encode()).hexdigest()
    raise UserError(f"reference {name}: {type(source).__name__} cannot be hashed; give a folder")


def images_content(images: EncodedImages, name: str) -> str:
    """A sha256 over the sha256 of the bytes of each image, in their order.

    Every process must call it.

    Args:
        images: The split.
        name: Of it, for people.
    """
    now_ns = time.time_ns()
    stamped = in_all(lambda: stamp(images))
    note = None
    if stamped is not None and now_ns - stamped[1] > RACY_NS:
        note = _note(stamped[0])
    known = None if note is None else _read(note)
    rank, world_size = place_among_ranks()
    # All or none: a process that reads waits for the others.
    if int(sum_over_ranks(torch.tensor(int(known is not None)))) == world_size:
        assert known is not None
        return known
    found, is_stamped = _hash_together(images, name)
    if note is not None and is_stamped and rank == 0:
        _write(note, found)
    return found


def _hash_together(images: EncodedImages, name: str) -> tuple[str, bool]:
    rank, world_size = place_among_ranks()
    own = range(rank, len(images), world_size)
    progress = Progress(f"reading the reference {name}, in images", max(1, len(own)))
    part = in_all(lambda: hash_images(images, own, progress.add))
    progress.end()
    whole = torch.zeros(len(images), DIGEST_BYTES, dtype=torch.uint8)
    whole[rank::world_size] = torch.from_numpy(part.rows)
    whole = sum_over_ranks(whole)
    num_stamped = int(sum_over_ranks(torch.tensor(int(part.is_stamped))))
    return hashlib.sha256(whole.numpy().tobytes()).hexdigest(), num_stamped == world_size


def _note(stamped: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "content" / f"{stamped[:32]}.json"


def _read(note: Path) -> str | None:
    try:
        return str(read_json(note)["content"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None  # it is read again


def _write(note: Path, found: str) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"content": found})
    except (UserError, OSError):
        return  # the next one reads again; the reference itself says where it cannot be kept
