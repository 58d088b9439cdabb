"""Looking at every image of a data set, in several processes: what a run would meet in it."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from varlit.data.bad_files import BadFile
from varlit.data.decoding import BrokenImageError, read_with_traits
from varlit.data.formats.encoded import Encoded, EncodedImages
from varlit.data.workers import begin_worker
from varlit.errors import UserError

CHUNK_IMAGES = 64
NUM_CONTENT_BYTES = 16


@dataclass(frozen=True)
class Look:
    """What one image is like.

    Attributes:
        row: Its row in the split.
        broken: Why it cannot be read; empty if it can.
        shorter_px: Its shorter side; 0 where it cannot be read.
        traits: See `varlit.data.decoding.Decoded`.
        content: A hash of its content where one was asked for.
    """

    row: int
    broken: str = ""
    shorter_px: int = 0
    traits: tuple[str, ...] = ()
    content: bytes = b""


@dataclass
class Inspection:
    """What has been found in a split so far.

    Attributes:
        images: The split.
        num_seen: Images looked at.
        broken: For each row that cannot be read, why.
        trait_rows: For each trait, the rows that have it.
        shorter_px: (N,) int32, 0 where unknown.
        contents: (N,) bytes, empty where unknown.
    """

    images: EncodedImages
    num_seen: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    trait_rows: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shorter_px = np.zeros(len(self.images), dtype=np.int32)
        self.contents = np.zeros(len(self.images), dtype=f"S{NUM_CONTENT_BYTES}")

    def add(self, look: Look) -> None:
        """Take note of one more image."""
        self.num_seen += 1
        self.shorter_px[look.row] = look.shorter_px
        if look.broken:
            self.broken[look.row] = look.broken
        for trait in look.traits:
            self.trait_rows.setdefault(trait, []).append(look.row)
        if look.content:
            self.contents[look.row] = look.content

    def small(self, image_size: int) -> np.ndarray:
        """Return the rows, ascending, whose shorter side is below `image_size`."""
        return np.flatnonzero((self.shorter_px > 0) & (self.shorter_px < image_size))

    def bad_files(self, image_size: int) -> list[BadFile]:
        """Return what a run would skip, in the order of the rows."""
        reasons = dict(self.broken)
        for row in self.small(image_size).tolist():
            size = f"shorter side {self.shorter_px[row]} px"
            reasons[row] = f"{size}, smaller than the crop of {image_size} px"
        return [BadFile(self.images.where(row), reasons[row]) for row in sorted(reasons)]


def inspect_images(
    images: EncodedImages, rows: np.ndarray, num_workers: int, with_content: bool = False
) -> Iterator[Look]:
    """Decode images and say what they are like, in any order.

    Args:
        images: The split.
        rows: (n,) int64, which of its images.
        num_workers: Processes; 0 or 1 does the work in this one.
        with_content: Hash the contents too.

    Raises:
        UserError: If a process is killed.
    """
    chunks = [rows[i : i + CHUNK_IMAGES].tolist() for i in range(0, len(rows), CHUNK_IMAGES)]
    if num_workers <= 1 or len(chunks) <= 1:
        look = partial(look_at, images, with_content=with_content)
        yield from map(look, rows.tolist())
        return
    # Spawned and not forked: what threads of this process hold locked would stay locked.
    context = multiprocessing.get_context("spawn")
    num_workers = min(num_workers, len(chunks))
    pool = ProcessPoolExecutor(num_workers, context, _begin_look, (images, with_content))
    try:
        waiting: set[Future[list[Look]]] = set()
        for chunk in chunks:
            waiting.add(pool.submit(_look_at_chunk, chunk))
            if len(waiting) >= 4 * num_workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (look for future in done for look in future.result())
        yield from (look for future in waiting for look in future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "a process that read images was killed, perhaps for want of memory: use fewer "
            "--num_workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(images: EncodedImages, row: int, with_content: bool = False) -> Look:
    """Decode one image and say what it is like."""
    try:
        encoded = images.read(row)
        decoded = read_with_traits(encoded)
        content = _content(encoded) if with_content else b""
    except BrokenImageError as error:
        return Look(row, broken=str(error))
    except OSError as error:
        return Look(row, broken=error.strerror or str(error))
    return Look(row, "", min(decoded.image.size), decoded.traits, content)


def count_duplicates(contents: np.ndarray) -> int:
    """Return how many of the known (n,) contents have occurred before."""
    known = contents[contents != b""]
    return len(known) - len(np.unique(known))


def _content(encoded: Encoded) -> bytes:
    if isinstance(encoded, bytes):
        content = encoded
    else:
        content = encoded.read_bytes() if isinstance(encoded, Path) else encoded.tobytes()
    return hashlib.blake2b(content, digest_size=NUM_CONTENT_BYTES).digest()


# A worker gets the split once and not with each chunk: a million names are 60 MB.
_work: partial[Look] | None = None


def _begin_look(images: EncodedImages, with_content: bool) -> None:
    global _work
    _work = partial(look_at, images, with_content=with_content)
    begin_worker()


def _look_at_chunk(rows: list[int]) -> list[Look]:
    assert _work is not None
    return [_work(row) for row in rows]
