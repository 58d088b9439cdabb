"""Checkpoints in parts: a small index under the usual name, and beside it one file a process.

The index is the checkpoint without the tensors that are spread over processes; it is renamed into
place last, so a save that breaks off leaves the one before it whole. All files hold plain data.
torch's own distributed checkpoints are not used: to read one is to unpickle it.
"""

import errno
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from varlit.errors import UserError
from varlit.training.sealing import flaw, read_seal, write_sealed

SHARDS = "shards"
SUMS = "shard_sha256"
Place = tuple[str | int, ...]
"""Keys from the root of a checkpoint down to a tensor."""


def take_shards(tree: Any, place: Place = ()) -> dict[Place, Tensor]:
    """Move the tensors that are spread over processes out of nested dicts and lists.

    Returns:
        This process's rows of each, on the CPU, by place.
    """
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    taken: dict[Place, Tensor] = {}
    for key, value in list(items):
        here = (*place, key)
        if isinstance(value, DTensor):
            # A copy: FSDP's rows lie in a padded buffer, all of which would be saved.
            taken[here] = value.to_local().detach().to("cpu", copy=True)
            del tree[key]
        elif isinstance(value, dict | list):
            taken |= take_shards(value, here)
    return taken


def write_parts(
    checkpoint: dict[str, Any],
    path: Path,
    rank: int,
    size: int,
    barrier: Callable[[], object],
    write_index: Callable[[dict[str, Any], Path], object] = write_sealed,
) -> None:
    """Write a checkpoint in parts; every process must call it.

    Args:
        checkpoint: The whole state, with DTensors; they are taken out of it.
        path: Name of the index.
        rank: This process.
        size: Number of processes.
        barrier: Waits for all of them.
        write_index: Writes a file whole or not at all; called in the first process.
    """
    folder = parts_folder(path)
    step = int(checkpoint.get("global_step", 0))
    names = [f"{folder.name}/{step:07d}-{part:05d}-of-{size:05d}.pt" for part in range(size)]
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(take_shards(checkpoint), path.parent / names[rank])
    barrier()
    if rank == 0:
        # By its parts' sums an index knows them from those of another save of the same step.
        sums = [_sum_of(path.parent / name) for name in names]
        write_index({**checkpoint, SHARDS: names, SUMS: sums}, path)
        remove_unused_parts(path)
    barrier()


def remove_unused_parts(path: Path) -> None:
    """Remove the parts beside a checkpoint that no index names: last-previous shares with last."""
    used: set[Path] = set()
    for other in path.parent.glob(f"{path.stem}*{path.suffix}"):
        try:
            index = torch.load(other, map_location="cpu", weights_only=True, mmap=True)
            used.update(part_paths(index, other) if in_parts(index) else [])
        except Exception:  # no index that anybody can use, in whatever way it is damaged
            continue
    for old in set(parts_folder(path).iterdir()) - used:
        old.unlink()


def in_parts(checkpoint: dict[str, Any]) -> bool:
    """Whether this is an index, whose tensors lie in other files."""
    return SHARDS in checkpoint


def open_parts(index: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put into an index, in the place of each tensor, the list of its parts.

    Their content stays on disk until it is used; see `joined`.

    Raises:
        UserError: If a file is missing or damaged.
    """
    parts = [_read_part(file, path) for file in part_paths(index, path)]
    del index[SHARDS]
    index.pop(SUMS, None)
    try:
        for place in parts[0]:
            target: Any = index
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = [part[place] for part in parts]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"the parts of {path} do not fit it ({type(error).__name__}); copy the whole run again"
        ) from error
    return index


def joined(value: Any) -> Any:
    """Make one tensor of the parts of one; anything else is left as it is."""
    is_split = isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value)
    return torch.cat(value) if is_split else value


def joined_tree(tree: Any) -> Any:
    """Join all tensors in nested dicts and lists."""
    if isinstance(tree, dict):
        return {key: joined_tree(value) for key, value in tree.items()}
    tree = joined(tree)
    return [joined_tree(value) for value in tree] if isinstance(tree, list) else tree


def parts_folder(path: Path) -> Path:
    """Where the parts of a checkpoint lie: `last.parts` beside `last.ckpt`."""
    return path.with_suffix(".parts")


def part_paths(index: dict[str, Any], path: Path) -> list[Path]:
    """The files of a checkpoint in parts; indexes of old hold names in their own folder.

    Raises:
        UserError: If the index names none, or files that are not below the folder of `path`.
    """
    names = index[SHARDS]
    if not isinstance(names, list) or not names or not all(map(_is_below, names)):
        raise UserError(f"{path} names parts that are none of its own; copy the whole run again")
    return [path.parent / name if "/" in name else parts_folder(path) / name for name in names]


def _is_below(name: Any) -> bool:
    if not isinstance(name, str) or "\0" in name:
        return False
    place = PurePosixPath(name)
    return bool(place.name) and not place.is_absolute() and ".." not in place.parts


def flaw_of_parts(index: dict[str, Any], path: Path) -> str:
    """Why the parts of a checkpoint cannot be used, in a few words; "" if they can.

    Raises:
        OSError: If a file cannot be read.
    """
    files = part_paths(index, path)
    sums = index.get(SUMS, [None] * len(files))
    if not isinstance(sums, list) or len(sums) != len(files):
        return "it does not hold the sums of its parts"
    for file, expected in zip(files, sums, strict=True):
        if not file.is_file():
            return f"its part {file.name} is missing"
        reason = flaw(file)
        if reason:
            return f"of its part {file.name}: {reason}"
        if expected is not None and _sum_of(file) != expected:
            return f"its part {file.name} is of another save"
    return ""


def _sum_of(file: Path) -> str:
    seal = read_seal(file)
    return seal.sha256 if seal else ""


def _read_part(file: Path, path: Path) -> dict[Place, Tensor]:
    try:
        part: dict[Place, Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )
    except FileNotFoundError:
        raise UserError(f"{file} is missing, a part of {path}; copy the whole run again") from None
    except Exception as error:  # in a damaged pickle any instruction may go wrong in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # of the disk; EINVAL is of a place that a damaged file names
        raise UserError(
            f"{file} is damaged ({type(error).__name__}), a part of {path}; copy the run again, or "
            "go on from a numbered snapshot with --ckpt_path"
        ) from error
    return part
