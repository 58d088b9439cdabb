"""From a class-folder tree to tar shards (WebDataset's layout) and their shards.json.

What a shard holds depends on the listing and the settings alone, and a shard appears whole or not
at all: an interrupted packing goes on where it stopped, on any number of processes, and ends in
the same bytes. What is needed for that lies in <out>/.pack.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from varlit.data.bad_files import LIST_FILE, BadFile
from varlit.data.draws import draw_integers
from varlit.data.formats.encoded import EncodedImages, digest, hold_out_rows
from varlit.data.formats.folders import ClassFolders, open_folders
from varlit.data.formats.shards_file import SHARDS_FILE, Shard, ShardList, write_shard_list
from varlit.data.packing_shard import ShardJob, ShardRecord, read_record, write_shard
from varlit.data.progress import Progress
from varlit.data.whole_files import read_json, write_bytes, write_json
from varlit.data.workers import run_jobs
from varlit.errors import UserError

WORK_FOLDER = ".pack"
SPEC_FILE = "spec.json"
KEEP_ORDER = -1


@dataclass(frozen=True)
class PackSettings:
    """What the bytes of the shards depend on, beside the images.

    Attributes:
        shard_size: Images for each shard.
        val_fraction: Part held out by name where the tree has no val folder; 0 for none.
        shuffle_seed: Seed of the order over all shards; -1 keeps the folder's order.
        resize_px: Shorter side of larger images; 0 takes every file's bytes as they are.
    """

    shard_size: int = 1000
    val_fraction: float = 0.0
    shuffle_seed: int = 0
    resize_px: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: If a setting is out of bounds.
        """
        if self.shard_size < 1:
            raise UserError(f"--shard_size is {self.shard_size}: expected at least 1 image.")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val_fraction is {self.val_fraction}: expected 0 to below 1.")
        if self.shuffle_seed < KEEP_ORDER:
            raise UserError(
                f"--shuffle_seed is {self.shuffle_seed}: expected 0 or more, or -1 for the order "
                "of the folder."
            )
        if self.resize_px < 0:
            raise UserError(f"--resize_px is {self.resize_px}: expected 0 (as it is) or more.")


@dataclass(frozen=True)
class Packed:
    """What a packing has made.

    Attributes:
        shards: The list that is in shards.json.
        bad: The files that were left out, with reasons.
        num_found: Shards that an earlier run had left.
    """

    shards: ShardList
    bad: tuple[BadFile, ...]
    num_found: int


def pack(folder: Path, out: Path, settings: PackSettings, num_workers: int) -> Packed:
    """Pack a class-folder tree, or go on packing it.

    Args:
        folder: <class>/<image>, or train/<class>/<image> and val/<class>/<image>.
        out: Where shards and shards.json go.
        settings: See there.
        num_workers: Processes.

    Raises:
        UserError: If the tree or `out` is not as expected, or no image can be read.
    """
    settings.check()
    if num_workers < 1:
        raise UserError(f"--workers is {num_workers}: expected at least 1 process.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"'{out}' lies in '{folder}', where the shards would be taken for a class: give "
            "another OUT."
        )
    splits = _open(folder, settings.val_fraction)
    with _begun(out, splits, settings):
        jobs = _jobs(splits, out, settings)
        records = {job.file: record for job in jobs if (record := read_record(job)) is not None}
        num_found = len(records)
        done = sum(len(job.images) for job in jobs if job.file in records)
        total = sum(len(job.images) for job in jobs)
        progress = Progress(f"packing '{folder}'", total, done)
        pending = [job for job in jobs if job.file not in records]
        for job, record in run_jobs(write_shard, pending, num_workers):
            records[job.file] = record
            progress.add(len(job.images))
        progress.end()
        return _finish(out, splits, jobs, records, num_found)


def _open(folder: Path, val_fraction: float) -> dict[str, EncodedImages]:
    splits = open_folders(str(folder))
    if "val" in splits and val_fraction > 0:
        raise UserError(f"'{folder}' has a val folder of its own: leave --val_fraction out.")
    if "val" in splits or val_fraction == 0:
        return splits
    train = splits["train"]
    if len(train) < 2:
        raise UserError(f"'{folder}' has one image, which leaves none to hold out.")
    rows, held_out = hold_out_rows(train.names, val_fraction)
    return {"train": train.take(rows), "val": train.take(held_out)}


@contextmanager
def _begun(out: Path, splits: dict[str, EncodedImages], settings: PackSettings) -> Iterator[None]:
    """Hold the folder against a second packing, and check that it was begun with the same."""
    work = out / WORK_FOLDER
    if not work.is_dir() and (any(out.glob("*.tar")) or (out / SHARDS_FILE).exists()):
        raise UserError(
            f"'{out}' holds shards that `varlit data pack` did not make: give another OUT."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot make the folder '{work}': {error.strerror}.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another `varlit data pack` is writing to '{out}'.") from error
        except OSError:
            pass  # a file system without locks
        _check_spec(work / SPEC_FILE, splits, settings)
        yield
    finally:
        os.close(lock)


def _check_spec(path: Path, splits: dict[str, EncodedImages], settings: PackSettings) -> None:
    # The settings first: another val_fraction gives other lists of images as well.
    content = asdict(settings)
    content |= {"images": {split: digest(images) for split, images in splits.items()}}
    if not path.is_file():
        write_json(path, content)
        return
    before = read_json(path)
    for name, value in json.loads(json.dumps(content)).items():
        if before.get(name) == value:
            continue
        if name == "images":
            raise UserError(
                "images have come or gone since this packing was begun: give another OUT, or "
                f"remove '{path.parents[1]}'."
            )
        raise UserError(
            f"'{path.parents[1]}' was begun with --{name} {before.get(name)}, now it is {value}: "
            "set it back, or give another OUT."
        )


def _jobs(splits: dict[str, EncodedImages], out: Path, settings: PackSettings) -> list[ShardJob]:
    jobs = []
    for split, images in splits.items():
        assert isinstance(images, ClassFolders)
        order = np.arange(len(images))
        if settings.shuffle_seed != KEEP_ORDER:
            order = np.argsort(draw_integers(settings.shuffle_seed, order), kind="stable")
        for number, start in enumerate(range(0, len(order), settings.shard_size)):
            rows = order[start : start + settings.shard_size]
            file = f"{split}-{number:06d}.tar"
            part = images.take(rows)
            jobs.append(ShardJob(out, out / WORK_FOLDER, file, part, rows, settings.resize_px))
    return jobs


def _finish(
    out: Path,
    splits: dict[str, EncodedImages],
    jobs: list[ShardJob],
    records: dict[str, ShardRecord],
    num_found: int,
) -> Packed:
    listed: dict[str, tuple[Shard, ...]] = {}
    bad: list[BadFile] = []
    for split in splits:
        own = [records[job.file] for job in jobs if job.file.startswith(f"{split}-")]
        bad += [file for record in own for file in record.bad]
        listed[split] = tuple(record.shard for record in own)
        if sum(shard.count for shard in listed[split]) == 0:
            raise UserError(
                f"none of the {split} images can be read, such as '{bad[-1].name}' "
                f"({bad[-1].reason}): expected image files."
            )
    shards = ShardList(splits["train"].class_names, listed)
    if bad:
        lines = "".join(file.line for file in bad)
        write_bytes(out / LIST_FILE, lines.encode("utf-8", "surrogateescape"))
    write_shard_list(shards, out)
    return Packed(shards, tuple(bad), num_found)
