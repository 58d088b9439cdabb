"""Out-painting: pictures on a larger canvas, whose rest is drawn window by window.

The schedules of VAR are square, so a model draws one square. A canvas of another size or ratio is
covered by such squares, each an edit whose known part is what lies on the canvas by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.generation.arguments import whole_number
from varlit.generation.editing.edits import EditSettings, class_of_each, draw_edits
from varlit.generation.editing.known import check_images
from varlit.generation.requests import Labels, Request, as_seeds
from varlit.generation.sampler import SamplingSettings
from varlit.models.var import VAR

TRIED_A_SIDE = 8
"""Windows are tried at every eighth of their side."""
WINDOW_SEEDS = 2**32
"""How far the seeds of one window of a canvas lie from those of the window before."""

MAX_CANVAS_PX = 2**26
"""Of a canvas, such as 8192x8192 px: 800 MB for each picture on it."""

Corner = tuple[int, int]  # (y, x) in pixels, the upper left


@dataclass(frozen=True)
class Placed:
    """Pictures on a canvas whose rest is still to be drawn."""

    images: Tensor  # (B, 3, H, W) in [-1, 1], 0 where nothing is yet
    is_new: Tensor  # (H, W) bool, True where it is to be drawn


def place(images: Tensor, canvas: tuple[int, int], corner: Corner | None = None) -> Placed:
    """Put pictures onto a larger canvas.

    Args:
        images: (B, 3, h, w) in [-1, 1].
        canvas: (H, W) in pixels.
        corner: Where their upper left corner comes; None = in the middle.

    Raises:
        UserError: If they do not lie inside it, are no images, or it is no canvas or too large.
    """
    check_images(images)
    canvas = _pair(canvas, "canvas", "(height, width) in pixels, such as (256, 512)")
    if canvas[0] * canvas[1] > MAX_CANVAS_PX:
        raise UserError(
            f"a canvas may have {MAX_CANVAS_PX:,} pixels, such as 8192x8192; got "
            f"{canvas[1]}x{canvas[0]}"
        )
    height, width = images.shape[-2:]
    y, x = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    if corner is not None:
        y, x = _pair(corner, "corner", "(y, x) in pixels, such as (0, 128)")
    if not (0 <= y <= canvas[0] - height and 0 <= x <= canvas[1] - width):
        raise UserError(
            f"a picture {width} px wide and {height} px high at x = {x}, y = {y} does not lie "
            f"inside a canvas of {canvas[1]}x{canvas[0]} px; take a larger canvas"
        )
    whole = images.new_zeros(*images.shape[:2], *canvas)
    whole[..., y : y + height, x : x + width] = images
    is_new = torch.ones(canvas, dtype=torch.bool, device=images.device)
    is_new[y : y + height, x : x + width] = False
    return Placed(whole, is_new)


def windows(is_new: Tensor, side_px: int, overlap: float = 0.5) -> Iterator[tuple[slice, slice]]:
    """Squares that cover all that is new, each beside what is known by its turn.

    Of the windows that are known by at least `overlap`, the one that brings most; where there is
    none, the one that knows most. Among equals the one nearest to the middle of what is known.

    Args:
        is_new: (H, W) bool, at least a window each way.
        side_px: Side of a window.
        overlap: Share of a window that should be known.

    Yields:
        Rows and columns of a window.

    Raises:
        UserError: If the canvas is smaller than a window.
    """
    height, width = is_new.shape
    if min(height, width) < side_px:
        raise UserError(
            f"the canvas is {width}x{height} px and this model draws {side_px}x{side_px} px; "
            "give one at least as large, such as "
            f"{max(width, side_px)}x{max(height, side_px)}"
        )
    still_new = is_new.cpu().clone()
    corners = _starts(height, side_px), _starts(width, side_px)
    while still_new.any():
        y, x = _best_corner(still_new, corners, side_px, (1 - overlap) * side_px**2)
        part = slice(y, y + side_px), slice(x, x + side_px)
        yield part
        still_new[part] = False


def draw_around(
    var: VAR,
    request: Request,
    placed: Placed,
    labels: Labels,
    settings: SamplingSettings,
    edit: EditSettings,
    overlap: float = 0.5,
) -> Tensor:
    """Draw the rest of a canvas; what lies on it keeps its pixels, a feather at its edge apart.

    Args:
        var: Draws one square.
        request: Tokenizer, random numbers and images at a time.
        placed: Pictures on the canvas.
        labels: A class for each picture, or one for all; None continues what is there.
        settings: Guidance and filtering.
        edit: Number of variants and feather; pixels are kept and nothing is there to remember.
        overlap: As in `windows`.

    Returns:
        (B * variants, 3, H, W), all variants of the first picture first.

    Raises:
        UserError: As `draw_edits` and `windows`, and if overlap is not above 0 and below 1.
    """
    if not 0 < overlap < 1:
        raise UserError(f"overlap must lie between 0 and 1; got {overlap}")
    classes = class_of_each(labels, len(placed.images), var.num_classes)
    classes = classes.repeat_interleave(edit.variants)
    each = torch.arange(len(placed.images)).repeat_interleave(edit.variants)
    seeds = as_seeds(request.seed, request.generator, len(classes), classes, each)
    alone = replace(edit, variants=1, keep_known_pixels=True, hide_masked=True, refit_known=True)
    canvas = placed.images.to(var.device).repeat_interleave(edit.variants, dim=0)
    is_new = placed.is_new.to(var.device).clone()
    side_px = request.tokenizer.config.image_size
    for number, (rows, columns) in enumerate(windows(is_new, side_px, overlap)):
        # With the same numbers in every window a canvas would repeat itself.
        own = None if seeds is None else [seed + number * WINDOW_SEEDS for seed in seeds]
        drawn = draw_edits(
            var,
            replace(request, seed=own),
            canvas[..., rows, columns],
            is_new[rows, columns],
            classes,
            settings,
            alone,
        )
        canvas[..., rows, columns] = drawn.images
        is_new[rows, columns] = False
    return canvas


def _pair(value: object, what: str, expected: str) -> tuple[int, int]:
    """Two whole numbers.

    Raises:
        UserError: If it is something else.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise UserError(f"{what} must be {expected}; got {value!r}")
    first, second = (whole_number(part, f"each number of {what}") for part in value)
    return first, second


def _starts(length_px: int, side_px: int) -> Tensor:
    """Where windows may begin along one side of the canvas; the last one ends where it ends."""
    last = length_px - side_px
    return torch.tensor(sorted({*range(0, last, max(1, side_px // TRIED_A_SIDE)), last}))


def _best_corner(
    still_new: Tensor, corners: tuple[Tensor, Tensor], side_px: int, max_new: float
) -> Corner:
    """The next window of `windows`; the rule is there."""
    (top, left), (bottom, right) = corners, (start + side_px for start in corners)
    # The sum over any window from the sums over all rectangles at the upper left corner.
    sums = F.pad(still_new.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    num_new = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left]
    num_new = num_new + sums[top][:, left]  # (rows, columns)
    is_anchored = (num_new > 0) & (num_new <= max_new)
    known_most = torch.where(num_new > 0, -num_new, -still_new.numel() - 1)
    worth = torch.where(is_anchored, num_new, -1) if is_anchored.any() else known_most
    middle = (~still_new).nonzero().double().mean(0) - side_px / 2
    off = (top[:, None] - middle[0]) ** 2 + (left - middle[1]) ** 2
    place = torch.where(worth == worth.max(), off, torch.inf).argmin().item()
    row, column = divmod(int(place), len(left))
    return int(top[row]), int(left[column])
