"""One shard: its images checked, perhaps made smaller, and written as a tar of fixed bytes."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from varlit.data.bad_files import BadFile
from varlit.data.decoding import BrokenImageError, read_rgb
from varlit.data.formats.folders import ClassFolders
from varlit.data.formats.shards_file import Shard
from varlit.data.whole_files import read_json, write_json
from varlit.disks import refusal
from varlit.errors import UserError

JPEG_QUALITY = 95
MAX_STEM = 60
TAR_RECORD_BYTES = 10240
# WebDataset's decoders know the first of the names of JPEG only.
_SUFFIXES = {".jpeg": ".jpg", ".jfif": ".jpg"}
_LOSSY = (".jpg", ".webp")


@dataclass(frozen=True, eq=False)
class ShardJob:
    """What one shard is made of.

    Attributes:
        out: Folder of the shards.
        work: Folder of what is unfinished, and of the records.
        file: Name of the shard.
        images: Its images, in order.
        rows: (n,) int64, their rows in the split, which keep their names apart.
        resize_px: Shorter side of larger images; 0 takes every file as it is.
    """

    out: Path
    work: Path
    file: str
    images: ClassFolders
    rows: np.ndarray
    resize_px: int


@dataclass(frozen=True)
class ShardRecord:
    """What has become of a job."""

    shard: Shard
    bad: tuple[BadFile, ...]


def read_record(job: ShardJob) -> ShardRecord | None:
    """Return the record of a shard that is finished and still there."""
    try:
        content = read_json(_record_file(job))
        record = ShardRecord(
            Shard(**content["shard"]), tuple(BadFile(**bad) for bad in content["bad"])
        )
        is_whole = (job.out / job.file).stat().st_size == record.shard.num_bytes
    except (UserError, OSError, KeyError, TypeError):
        return None
    return record if is_whole else None


def write_shard(job: ShardJob) -> ShardRecord:
    """Write a shard and its record; files that cannot be read are left out.

    Raises:
        UserError: If the disk is full or not writable.
    """
    path, temporary = job.out / job.file, job.work / f"{job.file}.part"
    try:
        with temporary.open("wb") as stream:
            record = _fill(job, stream)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {refusal(error, path)}. Free some space or mend the "
            "permission, then run the same command again; finished shards are kept."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)  # a full disk has better uses for it
    write_json(_record_file(job), asdict(record))
    return record


class _Tar:
    """A tar that says nothing of when, where and by whom it was written."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.num_bytes, self.sha256 = stream, 0, hashlib.sha256()

    def add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(content + bytes(-len(content) % tarfile.BLOCKSIZE))

    def end(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.num_bytes % TAR_RECORD_BYTES))

    def _write(self, content: bytes) -> None:
        self.stream.write(content)
        self.sha256.update(content)
        self.num_bytes += len(content)


def _fill(job: ShardJob, stream: BinaryIO) -> ShardRecord:
    tar, bad = _Tar(stream), []
    for place, row in enumerate(job.rows.tolist()):
        path = job.images.read(place)
        try:
            content, suffix = _encoded(path, job.resize_px)
        except BrokenImageError as error:
            bad.append(BadFile(str(path), str(error)))
            continue
        # Dots would end the key, and other letters are told differently by each kind of tar.
        key = f"{row:08d}-{re.sub('[^A-Za-z0-9_-]', '_', path.stem)[:MAX_STEM]}"
        tar.add(key + suffix, content)
        tar.add(f"{key}.cls", str(int(job.images.labels[place])).encode())
    tar.end()
    count = len(job.rows) - len(bad)
    shard = Shard(job.file, count, tar.num_bytes, tar.sha256.hexdigest())
    return ShardRecord(shard, tuple(bad))


def _encoded(path: Path, resize_px: int) -> tuple[bytes, str]:
    """Return the bytes of an image and their suffix.

    Raises:
        BrokenImageError: If it cannot be read to its end.
    """
    suffix = path.suffix.lower()
    suffix = _SUFFIXES.get(suffix, suffix)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrokenImageError(error.strerror or str(error)) from error
    # At an eighth of its size a JPEG is still read to its end.
    image = read_rgb(content, 0 if resize_px else 1)
    if not resize_px or min(image.size) <= resize_px:
        return content, suffix
    return _smaller(image, resize_px, suffix)


def _smaller(image: Image.Image, resize_px: int, suffix: str) -> tuple[bytes, str]:
    """Resize as training does, once for all epochs; what was lossless stays so."""
    ratio = resize_px / min(image.size)
    size = (int(image.width * ratio + 1e-6), int(image.height * ratio + 1e-6))
    image = image.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if suffix in _LOSSY:
        image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        return stream.getvalue(), ".jpg"
    image.save(stream, "PNG")
    return stream.getvalue(), ".png"


def _record_file(job: ShardJob) -> Path:
    return job.work / f"{job.file}.json"
