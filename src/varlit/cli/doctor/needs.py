"""What a recipe will take: bytes on disk by kind, files, memory, batches on their way.

Sizes of checkpoints, caches and batches are exact to a few percent; memory is the estimate of
`varlit info`; pictures go by what a run on photographs left.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varlit.cli.doctor.checks import Memory
from varlit.cli.pricing.costs import NUM_IMAGES, expected_cache, flat_data, global_batch, num_steps
from varlit.cli.pricing.tokenizer_memory import has_average, tokenizer_memory
from varlit.cli.pricing.tracing import count
from varlit.cli.pricing.var_memory import var_memory
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.ops.costs import BYTES_PER_TOKEN

FP32 = 4
BYTES_OF_A_DRAWING = 2 * 2**20
"""All pictures of one drawing, as PNG and for TensorBoard: measured at 64 px (photos64), and as
large at less, where small images are enlarged."""
PX_OF_THAT_DRAWING = 64
FILES_OF_A_DRAWING, FILES_OF_A_SHARD, FILES_OF_A_RUN = 4, 4, 50
BYTES_OF_A_LOGGED_LINE = 4 * 2**10
CHECKPOINTS = "checkpoints"
DRAWING = {"tokenizer": ("reconstructions", 1000), "var": ("samples", 2000)}
NUM_SCORES = 3  # best-psnr, best-lpips, best-rfid
PREFETCHED = 2  # batches of each worker, torch's default
OPEN_FILES_OF_A_PROCESS = 128
OPEN_FILES_OF_A_WORKER = 16


@dataclass(frozen=True)
class Needs:
    """What a run takes: bytes on disk by kind, files, memory of a device, batches under way."""

    disk: Mapping[str, float]
    num_files: int
    num_open_files: int
    memory: Memory
    shared_bytes: float
    num_processes: int
    num_workers: int
    is_sharded: bool


@dataclass(frozen=True)
class Training:
    """What both stages have in common for the estimates."""

    saved: float
    exported: float
    memory: Memory
    image_size: int
    num_images: int | None
    cache_bytes: float
    num_shards: int


def estimate(stage: str, settings: Mapping[str, Any], num_devices: int) -> Needs:
    """Estimate what a run takes.

    Args:
        stage: `tokenizer` or `var`.
        settings: Resolved settings, precision as it will be.
        num_devices: Training processes of this machine.
    """
    trainer, data = settings.get("trainer") or {}, flat_data(settings)
    num_nodes = int(trainer.get("num_nodes") or 1)
    num_parts = int(trainer.get("accumulate_grad_batches") or 1)
    num_at_once = max(1, global_batch(data) // (num_devices * num_nodes * num_parts))
    is_sharded = "ShardedStrategy" in str(trainer.get("strategy"))
    training = (_tokenizer if stage == "tokenizer" else _var)(settings, num_at_once)
    memory = training.memory
    states = memory.states / (num_devices * num_nodes if is_sharded else 1)
    memory = Memory(states, memory.per_image, num_at_once, num_parts)
    steps = num_steps(settings, data, training.num_images) or 0
    num_drawings, logged = _drawings(stage, settings, steps), _logged(trainer, steps)
    zoom = max(1.0, training.image_size / PX_OF_THAT_DRAWING) ** 2
    # Resident tokens read no file in workers; a map of tokens needs none.
    num_workers = int(data.get("num_workers", 4 if stage == "tokenizer" else 0))
    batch_bytes = float(num_at_once) * 3 * training.image_size**2 * FP32
    return Needs(
        disk={
            CHECKPOINTS: training.saved * count_checkpoints(settings, steps),
            "weights": training.exported,
            "token cache": training.cache_bytes if stage == "tokenizer" else 0.0,
            "pictures": num_drawings * BYTES_OF_A_DRAWING * zoom,
            "logs": logged * BYTES_OF_A_LOGGED_LINE,
        },
        num_files=num_drawings * FILES_OF_A_DRAWING
        + training.num_shards * FILES_OF_A_SHARD * (stage == "tokenizer")
        + count_checkpoints(settings, steps)
        + FILES_OF_A_RUN,
        num_open_files=OPEN_FILES_OF_A_PROCESS
        + OPEN_FILES_OF_A_WORKER * num_workers
        + training.num_shards * (stage == "var"),
        memory=memory,
        shared_bytes=num_devices * num_workers * PREFETCHED * batch_bytes,
        num_processes=num_devices,
        num_workers=num_workers,
        is_sharded=is_sharded,
    )


def count_checkpoints(settings: Mapping[str, Any], steps: int) -> int:
    """Count the files of a run's policy, and the one that is being written."""
    policy = settings.get("checkpoint") or {}
    every = int(policy.get("keep_every_n_steps") or 0)
    num_kept = int(policy.get("keep_last", 2)) + bool(policy.get("keep_best"))
    return num_kept + (steps // every if every else 0) + 1


def _drawings(stage: str, settings: Mapping[str, Any], steps: int) -> int:
    """Count drawings: early ones at powers of two, then at the cadence, and the last."""
    group, default = DRAWING[stage]
    every = int((settings.get(group) or {}).get("every_n_steps", default))
    return steps // every + every.bit_length() + 1 if every else 0


def _logged(trainer: Mapping[str, Any], steps: int) -> int:
    return steps // max(1, int(trainer.get("log_every_n_steps") or 50))


def _tokenizer(settings: Mapping[str, Any], num_at_once: int) -> Training:
    """Stage 1, with the token cache that follows."""
    from varlit.callbacks.token_writer import DEFAULT_NUM_CROPS, DEFAULT_SHARD_SIZE

    memory, data = tokenizer_memory(settings), flat_data(settings)
    config = TokenizerConfig.of((settings.get("model") or {}).get("tokenizer") or {})
    num_images = NUM_IMAGES.get(str(data.get("class_path")).rsplit(".", 1)[-1])
    root = str(data.get("root") or "")
    if num_images is None and root:
        num_images = _count_images(root)
    is_plain = str(data.get("class_path")).endswith("DigitsDataModule")
    crops = (settings.get("cache") or {}).get("num_crops") or (1 if is_plain else DEFAULT_NUM_CROPS)
    num_tokens = sum(side * side for side in config.scales)
    weights = FP32 * count(memory.network)  # the cache holds a copy of the tokenizer
    return Training(
        saved=memory.saved,
        exported=weights * (1 + NUM_SCORES),
        memory=Memory(memory.states, memory.per_image, num_at_once),
        image_size=config.image_size,
        num_images=num_images,
        cache_bytes=float(weights + (num_images or 0) * num_tokens * BYTES_PER_TOKEN * crops),
        num_shards=-(-(num_images or 0) // DEFAULT_SHARD_SIZE),
    )


def _count_images(root: str) -> int | None:
    """Count the training images; None where they cannot be opened or are streamed."""
    from varlit.data.formats.splits import is_remote, open_splits

    if is_remote(root):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return len(open_splits(root)["train"])
    except (UserError, OSError, ValueError):
        return None


def _var(settings: Mapping[str, Any], num_at_once: int) -> Training:
    """Stage 2."""
    from varlit.callbacks.token_writer import DEFAULT_SHARD_SIZE

    model, cache = settings.get("model") or {}, expected_cache(flat_data(settings))
    with shapes_only():
        network = VAR(VARConfig.of(model.get("var") or {}), cache.tokenizer, cache.num_classes)
    num_weights = count(network)
    memory = var_memory(network, settings, has_average(model))
    return Training(
        saved=memory.saved,
        exported=FP32 * num_weights,
        memory=Memory(memory.states, memory.per_image, num_at_once),
        image_size=cache.tokenizer.image_size,
        num_images=cache.num_images,
        cache_bytes=0.0,
        num_shards=-(-(cache.num_images or 0) // DEFAULT_SHARD_SIZE),
    )
