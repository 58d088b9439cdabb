"""`varlit doctor -c RECIPE`: what the recipe will take, compared with what is here."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from varlit.cli.config.recipes import BAD_SCALARS, option_value
from varlit.cli.doctor import checks, machine
from varlit.cli.doctor.findings import Finding
from varlit.cli.doctor.main import check_imagenet
from varlit.cli.doctor.needs import CHECKPOINTS, Needs, estimate
from varlit.cli.doctor.settings import find, flags_of, resolve
from varlit.cli.pricing.costs import flat_data
from varlit.cli.pricing.info import merge
from varlit.cli.running.devices import Placement, place
from varlit.errors import UserError

BYTES_OF_A_PROCESS = 2**30
"""Python with torch and Lightning: 0.76 GiB measured on a CPU; the rest is margin."""
BYTES_OF_A_WORKER = 2**29
DIRPATH = "--checkpoint.dirpath"


def check(args: Namespace, words: list[str]) -> Iterator[Finding]:
    """Compare a recipe with this machine.

    Args:
        args: The flags of `varlit doctor`.
        words: The flags beyond them, as `varlit fit` takes them.

    Raises:
        UserError: If there is no such recipe.
    """
    stage, _ = find(args.config)
    try:
        found = resolve(args.config, [*words, *flags_of(args, stage)])
    except UserError as error:
        yield "fix", "recipe", str(error)
        return
    yield "ok", "recipe", f"`varlit {stage} fit` takes these settings"
    is_typed = option_value(words, "--trainer.precision") is not None
    gpus = str(found.settings.get("gpus") or "auto")
    try:
        placement = place(gpus, dict(found.settings["trainer"]), is_typed)
    except ValueError as error:  # UserError is one; --gpus of 5,000 digits is another
        yield "fix", "devices", str(error)
        return
    settings = merge(found.settings, {"trainer": {"precision": placement.precision}})
    yield _told(placement, gpus)
    yield from check_data(stage, settings, is_looked_at=bool(args.data))
    try:
        needs = estimate(stage, settings, count_devices(placement))
    except (*BAD_SCALARS, ArithmeticError, RuntimeError) as error:
        yield "fix", "recipe", f"what it takes cannot be told ({type(error).__name__}: {error})"
        return
    yield from compare(needs, placement, found.run_dir, checkpoints_apart(settings))


def checkpoints_apart(settings: Mapping[str, Any]) -> Path | None:
    """Return the folder of the checkpoints where it is not in the run's."""
    given = (settings.get("checkpoint") or {}).get("dirpath")
    return Path(given).expanduser() if given else None


def count_devices(placement: Placement) -> int:
    """Count the training processes of this machine."""
    devices = placement.devices
    if isinstance(devices, list):
        return len(devices)
    number = int(devices) if str(devices).lstrip("-").isdecimal() else 1
    return number if number > 0 else max(1, len(machine.cards()))


def _told(placement: Placement, gpus: str) -> Finding:
    text = f"{placement.accelerator} x {placement.devices}, {placement.precision}"
    text += f" ({placement.remark})" if placement.remark else ""
    is_other = placement.accelerator == "cpu" and gpus not in {"0", "auto"}
    return ("warn" if is_other else "ok"), "devices", text


def check_data(
    stage: str, settings: Mapping[str, Any], is_looked_at: bool = False
) -> Iterator[Finding]:
    """Check that what a run reads is there.

    Args:
        stage: `tokenizer` or `var`.
        settings: As `fit` takes them.
        is_looked_at: Whether `--data` named the images, which are then opened and decoded anyway.
    """
    data = flat_data(settings)
    if stage == "var":
        yield _check_cache(str(data.get("tokens") or ""))
        return
    source = str(data.get("class_path") or "").rsplit(".", 1)[-1]
    root, val_root = str(data.get("root") or ""), str(data.get("val_root") or "")
    if source == "DigitsDataModule":
        yield "ok", "data", "the digits come with scikit-learn"
    elif source not in {"ImageDataModule", "ImageNetDataModule"}:
        yield "warn", "data", f"what {source} reads is not looked at"
    elif root and not (is_looked_at and not val_root):
        yield from _check_images(root, val_root, source)
    elif source == "ImageNetDataModule" and not root:
        found = list(check_imagenet())
        if found[0][0] == "ok":
            yield from found
        else:  # other recipes can start without it, this one cannot
            yield "fix", found[0][1], found[0][2]
    elif not root:
        yield "fix", "data", "the recipe reads your images; give --data photos/"


def _check_images(root: str, val_root: str, source: str) -> Iterator[Finding]:
    """Open images as the run would, without decoding them."""
    from varlit.cli.doctor.data import open_sets
    from varlit.data.imagenet import KAGGLE_FOLDER

    nested = Path(root).expanduser() / KAGGLE_FOLDER
    is_nested = source == "ImageNetDataModule" and os.path.isdir(nested / "train")
    yield from open_sets(str(nested) if is_nested else root, val_root)


def _check_cache(tokens: str) -> Finding:
    """Compare a token cache with its manifest, by the sizes of its files."""
    from varlit.data.tokens.manifest import read_manifest
    from varlit.data.tokens.module import find_cache
    from varlit.data.tokens.reader import check_shards

    try:
        manifest = read_manifest(find_cache(tokens))
        for split in manifest.splits:
            check_shards(manifest, split, in_full=False)
    except UserError as error:
        return "fix", "cache", str(error)
    counts = ", ".join(f"{manifest.count(split):,} {split}" for split in manifest.splits)
    return "ok", "cache", f"{counts} images in {manifest.folder}, all files whole in size"


def compare(
    needs: Needs, placement: Placement, run_dir: Path, apart: Path | None = None
) -> Iterator[Finding]:
    """Compare what a run takes with this machine.

    Args:
        needs: Of this machine's part of the run.
        placement: Its devices.
        run_dir: Where it will write.
        apart: Where its checkpoints go, if not there.
    """
    writing, on_cpu = machine.try_writing(run_dir), placement.accelerator == "cpu"
    place = writing.place
    has_checkpoint = os.path.isfile(run_dir / "checkpoints" / "last.ckpt")
    yield checks.check_writing(place, writing.reason, has_checkpoint)
    yield from _check_room(needs.disk, place, apart)
    yield checks.check_files(needs.num_files, machine.free_files(place), place)
    limits = machine.read_limits()
    there = machine.available_memory(limits)
    if there is not None:
        limited = ", by memory.max" if there == limits.memory_bytes else ""
        ram = ram_needed(needs, on_cpu)
        yield checks.check_memory(ram, there, "memory", f"of RAM free{limited}", needs.is_sharded)
    if not on_cpu:
        yield from _check_cards(needs)
    yield from _check_processes(needs, limits)
    yield checks.check_clock(datetime.now(UTC).year, writing.skew_s)


def _check_room(disk: Mapping[str, float], place: Path, apart: Path | None) -> Iterator[Finding]:
    """The disk of a run, and that of its checkpoints where it is another one."""
    parts = dict(disk)
    if apart is not None:
        writing = machine.try_writing(apart)
        yield checks.check_writing(writing.place, writing.reason, False, DIRPATH)
        if machine.is_other_disk(writing.place, place):
            own = {CHECKPOINTS: parts.pop(CHECKPOINTS)}
            free = machine.free_bytes(writing.place) or 0
            yield checks.check_room(own, free, writing.place, DIRPATH)
    yield checks.check_room(parts, machine.free_bytes(place) or 0, place)


def ram_needed(needs: Needs, on_cpu: bool) -> checks.Memory:
    """Put together the RAM of all processes; on a CPU the networks are in it."""
    n, memory = needs.num_processes, needs.memory
    programs = float(n * (BYTES_OF_A_PROCESS + needs.num_workers * BYTES_OF_A_WORKER))
    if not on_cpu:
        return checks.Memory(programs + needs.shared_bytes, 0.0, 0)
    states = n * memory.states + programs + needs.shared_bytes
    return checks.Memory(states, n * memory.per_image, memory.num_images, memory.num_parts)


def _check_cards(needs: Needs) -> Iterator[Finding]:
    """The fullest of the GPUs that are used, and whether they reach each other."""
    cards = machine.cards()[: needs.num_processes]
    if cards:
        least = min(cards, key=lambda card: card.free_bytes)
        yield checks.check_memory(
            needs.memory, least.free_bytes, "gpu memory", f"free on {least.name}", needs.is_sharded
        )
        yield checks.check_peers(len(cards), machine.has_nccl(), machine.pairs_apart(len(cards)))


def _check_processes(needs: Needs, limits: machine.Limits) -> Iterator[Finding]:
    """Cores, /dev/shm and open files."""
    n, allowed = needs.num_processes, machine.allowed_cores(limits)
    present = os.cpu_count() or 1
    yield checks.check_limits(n, present, allowed, machine.count_numa_nodes())
    yield checks.check_cores(n, needs.num_workers, allowed)
    yield checks.check_shared(needs.shared_bytes, machine.free_bytes(machine.SHARED_MEMORY))
    yield checks.check_open_files(needs.num_open_files, *machine.open_files_limit())
