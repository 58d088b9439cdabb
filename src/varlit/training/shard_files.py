"""Checkpoints in parts: a small index under the usual name, and beside it one file a process.

The index is the checkpoint without the tensors that are spread over processes; it is renamed into
place last, so a save that breaks off leaves the one before it whole. All files hold plain data.
torch's own distributed checkpoints are not used: to read one is to unpickle it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from varlit.errors import UserError

SHARDS = "shards"
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
    checkpoint: dict[str, Any], path: Path, rank: int, size: int, barrier: Callable[[], object]
) -> None:
    """Write a checkpoint in parts; every process must call it.

    Args:
        checkpoint: The whole state, with DTensors; they are taken out of it.
        path: Name of the index.
        rank: This process.
        size: Number of processes.
        barrier: Waits for all of them.
    """
    folder = parts_folder(path)
    step = int(checkpoint.get("global_step", 0))
    names = [f"{step:07d}-{part:05d}-of-{size:05d}.pt" for part in range(size)]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(take_shards(checkpoint), folder / names[rank])
    barrier()
    if rank == 0:
        write_whole({**checkpoint, SHARDS: names}, path)
        for old in set(folder.iterdir()) - {folder / name for name in names}:
            old.unlink()
    barrier()


def in_parts(checkpoint: dict[str, Any]) -> bool:
    """Whether this is an index, whose tensors lie in other files."""
    return SHARDS in checkpoint


def open_parts(index: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put into an index, in the place of each tensor, the list of its parts.

    Their content stays on disk until it is used; see `joined`.

    Raises:
        UserError: If a file is missing or damaged.
    """
    parts = [_read_part(parts_folder(path) / name, path) for name in index.pop(SHARDS)]
    for place in parts[0]:
        target: Any = index
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = [part[place] for part in parts]
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


def _read_part(file: Path, path: Path) -> dict[Place, Tensor]:
    try:
        part: dict[Place, Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )
    except FileNotFoundError:
        raise UserError(f"{file} is missing, a part of {path}; copy the whole run again") from None
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}), a part of {path}; copy the run again, or "
            "go on from a numbered snapshot with --ckpt_path"
        ) from error
    return part


def write_whole(content: Any, path: Path) -> None:
    """Write plain data under a temporary name, then rename it into place."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
