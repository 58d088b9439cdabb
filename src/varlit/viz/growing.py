"""Images growing over the scales as an animated GIF: one frame a scale, one palette for all.

A GIF has 256 colours. Chosen for every frame alone they would flicker, and so would dithering that
spreads errors: a pixel's colour would depend on its neighbours. Here all frames share a palette and
a fixed pattern, so what does not change between frames stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from varlit.disks import whole_file
from varlit.errors import UserError
from varlit.viz.grids import tile_grid, to_uint8
from varlit.viz.pyramids import plain_name
from varlit.viz.style import (
    ACCENT,
    GAP_PX,
    HAIRLINE,
    INK,
    LABEL_PX,
    MUTED,
    PAPER,
    Colour,
    blank,
    hang,
    line_height,
    text_width,
    write,
)

FRAME_MS = 600
LAST_FRAME_MS = 2400
MAX_SIDE_PX = 720
"""Of the grid, without labels and margins; ten rows of eight on ten scales came to 2.1 MB."""
MAX_ROWS, MAX_COLUMNS = 10, 10
TILE_PX = 160
"""Side that small images are enlarged to where there is room."""
MARGIN_PX = 18
TRACK_PX = 4
PATTERN_STRENGTH = 8.0
"""Of 255: hides the steps between the colours of a smooth area and is hardly seen itself."""
NUM_COLOURS = 256
NUM_BLENDS = 6
MAX_STUDIED_PIXELS = 100_000
SETTLED_SHARE = 0.01
"""The palette is settled when no more of its pixels move to another colour."""


def growing_pictures(
    frames: Sequence[Tensor],
    names: Sequence[str],
    *,
    columns: int = 1,
    row_labels: Sequence[str] = (),
    title: str = "",
    caption: str = "",
) -> list[np.ndarray]:
    """A picture for each scale: a grid of images as they are after it, and how far that is.

    Tiles are as large as fits into `MAX_SIDE_PX`; of a larger grid the first `MAX_ROWS` rows and
    `MAX_COLUMNS` columns are shown.

    Args:
        frames: K tensors (N, 3, H, W) in [-1, 1], decoded after each scale.
        names: K labels, such as `Scales.names`.
        columns: Images in a row; N is filled row by row.
        row_labels: Left of each row.
        title: Heading.
        caption: Grey sentence under the heading.

    Returns:
        K pictures (H, W, 3) uint8 of one size.

    Raises:
        UserError: If there is not one name a frame, or nothing to show.
    """
    if len(frames) != len(names):
        raise UserError(f"got {len(frames)} frames and {len(names)} scale names; give one each.")
    if not frames or not len(frames[0]):
        raise UserError("a growing picture of no images was asked for; give at least one image.")
    num_rows = min(-(-len(frames[0]) // columns), MAX_ROWS)
    num_columns = min(columns, MAX_COLUMNS, len(frames[0]))
    side = tile_side(frames[0].shape[-1], num_rows, num_columns)
    sheets = []
    for k, frame in enumerate(frames):
        images = [row[:num_columns] for row in frame.split(columns)[:num_rows]]
        grid = tile_grid(
            [[enlarged(tile, side) for tile in to_uint8(row)] for row in images],
            row_labels=row_labels[:num_rows],
            title=title,
            caption=caption,
            tile_px=side,
            margin_px=0,
        )
        sheets.append(with_track(grid, [plain_name(name) for name in names], k))
    return sheets


def tile_side(image_px: int, num_rows: int, num_columns: int) -> int:
    """Side of the tiles of a grid: small images enlarged, no grid beyond `MAX_SIDE_PX`."""
    room = (MAX_SIDE_PX + GAP_PX) // max(num_rows, num_columns) - GAP_PX
    return min(max(image_px, TILE_PX), room)


def enlarged(tile: np.ndarray, side_px: int) -> np.ndarray:
    """An image (H, W, 3) uint8 smoothly at another size, with the pattern that hides steps."""
    resized = Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.BICUBIC)
    places = np.arange(side_px) % len(PATTERN)
    shift = PATTERN[places[:, None], places[None, :], None] * PATTERN_STRENGTH
    return np.clip(np.asarray(resized) + shift, 0, 255).round().astype(np.uint8)


def with_track(grid: np.ndarray, labels: Sequence[str], k: int) -> np.ndarray:
    """Put a picture on paper, with a bar under it that is filled up to scale k, and its label."""
    room = max(text_width(label, LABEL_PX) for label in labels) + 14
    inner = max(grid.shape[1], room + len(labels) * (TRACK_PX + 3))
    height = grid.shape[0] + 10 + line_height(LABEL_PX)
    sheet = blank(height + 2 * MARGIN_PX, inner + 2 * MARGIN_PX)
    hang(sheet, grid, (MARGIN_PX, MARGIN_PX))
    middle = MARGIN_PX + height - line_height(LABEL_PX) // 2
    write(sheet, (MARGIN_PX, middle), labels[k], anchor="lm")
    edges = np.linspace(MARGIN_PX + room, MARGIN_PX + inner + 3, len(labels) + 1).round()
    for i, (left, right) in enumerate(pairwise(edges)):
        box = int(left), middle - TRACK_PX // 2, int(right) - 3, middle + TRACK_PX // 2
        sheet.paste(ACCENT if i <= k else HAIRLINE, box)
    return np.asarray(sheet)


def save_gif(pictures: Sequence[np.ndarray], path: Path | str) -> Path:
    """Write pictures (H, W, 3) uint8 of one size as a GIF that loops and rests on the last one.

    The file appears all at once; the same pictures give the same bytes.

    Raises:
        UserError: If there are none, or they differ in size.
    """
    path = Path(path)
    sizes = {picture.shape for picture in pictures}
    if len(sizes) != 1:
        raise UserError(f"a GIF takes pictures of one size, at least one; got {len(sizes)} sizes")
    first, *rest = with_one_palette(pictures)
    with whole_file(path) as unfinished:
        first.save(
            unfinished,
            format="GIF",
            save_all=True,
            append_images=rest,
            duration=[FRAME_MS] * len(rest) + [LAST_FRAME_MS],
            loop=0,
            disposal=1,
            optimize=False,
        )
    return path


def with_one_palette(pictures: Sequence[np.ndarray]) -> list[Image.Image]:
    """Pictures as indices into one palette: the house's colours, and the best for the rest."""
    fixed = list(house_colours())
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    # Paper is most of a sheet, and has its colour already.
    pixels = pixels[(pixels != np.array(PAPER, dtype=np.uint8)).any(axis=1)]
    # An odd stride, or all that is seen would lie at the same places of the pattern.
    pixels = pixels[:: len(pixels) // MAX_STUDIED_PIXELS | 1]
    colours = [component for colour in fixed for component in colour]
    if len(pixels):
        studied = Image.fromarray(pixels[None]).quantize(
            NUM_COLOURS - len(fixed),
            Image.Quantize.MEDIANCUT,
            kmeans=1 + round(len(pixels) * SETTLED_SHARE),
        )
        colours += studied.getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    plain = Image.Dither.NONE
    return [Image.fromarray(p).quantize(palette=palette, dither=plain) for p in pictures]


def house_colours() -> Iterator[Colour]:
    """The colours of paper, text and track, and those at the soft edges of letters."""
    yield from (PAPER, INK, MUTED, HAIRLINE, ACCENT)
    for ink in (INK, MUTED):
        for i in range(1, NUM_BLENDS):
            share = i / NUM_BLENDS
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(PAPER, ink, strict=True))
            yield red, green, blue


def ordered_pattern(side: int) -> np.ndarray:
    """Thresholds in -0.5..0.5 that differ as much as can be between neighbours (Bayer 1973).

    Args:
        side: A power of two.

    Returns:
        Array (side, side) of mean 0.
    """
    order = np.zeros((1, 1))
    while len(order) < side:
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    return (order + 0.5) / order.size - 0.5


PATTERN = ordered_pattern(8)
