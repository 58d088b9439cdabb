"""`varlit doctor -c RECIPE`: what the recipe will take, compared with what is here."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from varlit.cli.config.recipes import STAGES, base_chain, find_recipe, find_trainer_group, read_yaml
from varlit.cli.doctor import checks, machine
from varlit.cli.doctor.findings import Finding
from varlit.cli.doctor.main import check_imagenet
from varlit.cli.doctor.needs import Needs, estimate
from varlit.cli.pricing.costs import flat_data
from varlit.cli.pricing.info import find_settings, merge, parse_overrides
from varlit.cli.running.devices import Placement, place
from varlit.errors import UserError

BYTES_OF_A_PROCESS = 2**30
"""Python with torch and Lightning: 0.76 GiB measured on a CPU; the rest is margin."""
BYTES_OF_A_WORKER = 2**29


def check(args: Namespace, words: list[str]) -> Iterator[Finding]:
    """Compare a recipe with this machine.

    Args:
        args: The flags of `varlit doctor`.
        words: The flags beyond them, as `varlit fit` takes them.

    Raises:
        UserError: If there is no such recipe.
    """
    stage, settings = resolve(args.config, words, args.data)
    try:
        placement = place(args.gpus, dict(settings.get("trainer") or {}), False)
    except UserError as error:
        yield "fix", "devices", str(error)
        return
    settings = merge(settings, {"trainer": {"precision": placement.precision}})
    yield _told(placement, args.gpus)
    yield from check_data(stage, settings)
    needs = estimate(stage, settings, count_devices(placement))
    yield from compare(needs, placement, args.root / (args.name or f"{stage}-{_stem(args.config)}"))


def resolve(given: str, words: list[str], data: str | None) -> tuple[str, dict[str, Any]]:
    """Find a recipe and put together its settings.

    Args:
        given: A recipe's name, `stage/name`, a file or a run.
        words: Overrides such as `--model.var.depth 20`, and `--trainer fsdp`.
        data: Images for stage 1, a token cache for stage 2.

    Raises:
        UserError: If there is no such recipe, or two of them.
    """
    stage, _, name = given.partition("/")
    if stage in STAGES and not Path(given).is_file():
        found = [(stage, find_recipe(stage, name))]
    else:
        found = find_settings(given)
    if len(found) > 1:
        names = " or ".join(f"{stage}/{given}" for stage, _ in found)
        raise UserError(f"`{given}` is a recipe of both stages; say {names}")
    [(stage, path)] = found
    chain = [] if path.name == "fit.yaml" else base_chain(stage)
    settings: dict[str, Any] = {}
    for content in [*map(read_yaml, [*chain, path]), _typed(words)]:
        settings = merge(settings, content)
    if data:
        key = "root" if stage == "tokenizer" else "tokens"
        settings["data"] = flat_data(settings) | {key: data}
    return stage, settings


def _typed(words: list[str]) -> dict[str, Any]:
    """Read overrides; `--trainer fsdp` is a file."""
    words, trainer = list(words), {}
    if "--trainer" in words[:-1]:
        at = words.index("--trainer")
        trainer = read_yaml(Path(find_trainer_group(words[at + 1])))
        del words[at : at + 2]
    return merge({"trainer": trainer}, parse_overrides(words))


def _stem(given: str) -> str:
    path = Path(given)
    return path.parent.name if path.name == "fit.yaml" else path.stem


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


def check_data(stage: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that what a run reads is there; images themselves are looked at by `--data`."""
    data = flat_data(settings)
    if stage == "var":
        yield _check_cache(str(data.get("tokens") or ""))
        return
    source = str(data.get("class_path") or "").rsplit(".", 1)[-1]
    root = str(data.get("root") or "")
    if source == "DigitsDataModule":
        yield "ok", "data", "the digits come with scikit-learn"
    elif source == "ImageNetDataModule" and not root:
        found = list(check_imagenet())
        if found[0][0] == "ok":
            yield from found
        else:  # other recipes can start without it, this one cannot
            yield "fix", found[0][1], found[0][2]
    elif not root:
        yield "fix", "data", "the recipe reads your images; give --data photos/"


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


def compare(needs: Needs, placement: Placement, run_dir: Path) -> Iterator[Finding]:
    """Compare what a run takes with this machine.

    Args:
        needs: Of this machine's part of the run.
        placement: Its devices.
        run_dir: Where it will write.
    """
    writing = machine.try_writing(run_dir)
    place, on_cpu = writing.place, placement.accelerator == "cpu"
    has_checkpoint = (run_dir / "checkpoints" / "last.ckpt").is_file()
    yield checks.check_writing(place, writing.reason, has_checkpoint)
    yield checks.check_room(needs.disk, machine.free_bytes(place) or 0, place)
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
