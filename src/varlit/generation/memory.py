"""What to say when a batch did not fit into the memory of a GPU: one that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from varlit.errors import UserError

T = TypeVar("T")


def within_memory(draw: Callable[[int], T], count: int, batch_size: int) -> T:
    """Draw `count` images, or say what fits.

    Args:
        draw: Draws so many images, `batch_size` at a time.
        count: All of them.
        batch_size: Images at a time.

    Raises:
        UserError: If a batch does not fit into the memory of the GPU, naming one that does.
    """
    try:
        return draw(count)
    except torch.OutOfMemoryError:
        # Its traceback holds the tensors of the batch until this block is left.
        too_large = min(batch_size, count)
    torch.cuda.empty_cache()
    raise UserError(told_batch("batch_size", too_large, fitting_batch(draw, too_large)))


def fitting_batch(draw: Callable[[int], object], too_large: int) -> int:
    """Halve a batch that did not fit until one does, by trying.

    Call it outside of the `except` that caught the error: what is being handled keeps its memory.

    Args:
        draw: Draws so many images, and may run out of memory.
        too_large: A number of images that did.

    Returns:
        The first half, quarter, ... that fits; 0 where not even one image does.
    """
    size = too_large // 2
    while size >= 1:
        try:
            draw(size)
        except torch.OutOfMemoryError:
            size //= 2
        else:
            return size
        torch.cuda.empty_cache()
    return 0


def told_batch(flag: str, too_large: int, fitting: int) -> str:
    """One line for a user whose batch did not fit.

    Args:
        flag: How the batch size is set where the user is, such as `--batch_size`.
        too_large: What did not fit.
        fitting: What does, by `fitting_batch`.
    """
    if fitting:
        return f"out of GPU memory at {flag} {too_large}; {flag} {fitting} was tried and fits"
    return (
        f"out of GPU memory, even with one image at a time (asked for: {flag} {too_large}); free "
        "the GPU, draw on the CPU, or take a smaller model"
    )
