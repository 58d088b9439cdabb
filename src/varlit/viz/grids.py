"""Grids of images with labelled rows and columns, and pairs of originals and reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from varlit.disks import whole_file
from varlit.errors import UserError
from varlit.viz.style import (
    GAP_PX,
    LABEL_PX,
    MARGIN_PX,
    MUTED,
    blank,
    hang,
    line_height,
    text_width,
    with_heading,
    write,
)

Tiles = Sequence[np.ndarray]  # each (H, W, 3) uint8


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] as rounded bytes; values outside are clamped.

    Returns:
        Array (B, H, W, 3) uint8.
    """
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return np.asarray(scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu())


def magnification(side_px: int, wanted_px: int = 96) -> int:
    """Integer factor that brings a small image near a readable size, never below 1."""
    return max(1, round(wanted_px / side_px))


def upscale(picture: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of (..., H, W, 3) `factor` times: exact, nothing is smoothed."""
    return picture.repeat(factor, axis=-3).repeat(factor, axis=-2)


def save_png(picture: np.ndarray, path: Path | str) -> Path:
    """Write an array (H, W, 3) as PNG; folders are made, the file appears all at once."""
    path = Path(path)
    with whole_file(path) as unfinished:
        Image.fromarray(picture).save(unfinished, format="PNG")
    return path


def beside(pictures: Tiles, gap_px: int = 2 * MARGIN_PX) -> np.ndarray:
    """Lay pictures of any size side by side, aligned at the top, as one picture (H, W, 3)."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] + gap_px for picture in pictures) - gap_px
    sheet = blank(height, width)
    x = 0
    for picture in pictures:
        hang(sheet, picture, (x, 0))
        x += picture.shape[1] + gap_px
    return np.asarray(sheet)


def tile_grid(
    rows: Sequence[Tiles],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    tile_labels: Sequence[Sequence[str]] = (),
    title: str = "",
    caption: str = "",
    tile_px: int = 96,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """Hang tiles in rows and columns, with labels left, above and under each tile.

    Args:
        rows: Rows of tiles (H, W, 3) uint8 of one size; rows may differ in length.
        row_labels: Left of each row, none or one a row.
        column_labels: Above each column, none or one a column.
        tile_labels: Under each tile, none or one row of labels a row; "" leaves one out.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        tile_px: Size that small tiles are brought near to, by an integer factor.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.

    Raises:
        UserError: If there is nothing to show.
    """
    if not rows or not any(len(row) for row in rows):
        raise UserError("a picture of no images was asked for; give at least one image.")
    factor = magnification(max(rows[0][0].shape[:2]), tile_px)
    height, width = (side * factor for side in rows[0][0].shape[:2])
    columns = max(len(row) for row in rows)
    left = max((text_width(label, LABEL_PX) for label in row_labels), default=0)
    left += 14 if left else 0
    top = line_height(LABEL_PX) + 4 if column_labels else 0
    captioned = [bool(tile_labels) and any(tile_labels[i]) for i in range(len(rows))]
    pitch_x, below = width + GAP_PX, line_height(LABEL_PX) + 4
    ys = [top]
    for has_labels in captioned:
        ys.append(ys[-1] + height + GAP_PX + (below if has_labels else 0))
    sheet = blank(ys[-1] - GAP_PX, left + columns * pitch_x - GAP_PX)
    for column, label in enumerate(column_labels):
        centre = left + column * pitch_x + width // 2
        write(sheet, (centre, 0), label, colour=MUTED, anchor="ma")
    for i, row in enumerate(rows):
        y = ys[i]
        if row_labels:
            write(sheet, (left - 14, y + height // 2), row_labels[i], anchor="rm")
        for j, tile in enumerate(row):
            x = left + j * pitch_x
            hang(sheet, upscale(tile, factor), (x, y))
            if captioned[i]:
                centre = (x + width // 2, y + height + 4)
                write(sheet, centre, tile_labels[i][j], colour=MUTED, anchor="ma")
    return with_heading(np.asarray(sheet), title, caption, margin_px)


def image_grid(
    images: Tensor,
    columns: int,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    caption: str = "",
    tile_px: int = 96,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """A grid of images (N, 3, H, W) in [-1, 1], filled row by row.

    Give one label a row for samples by class (images sorted by class, `columns` of each).

    Returns:
        Picture (H, W, 3) uint8.
    """
    tiles = list(to_uint8(images))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return tile_grid(
        rows,
        row_labels=row_labels,
        column_labels=column_labels,
        title=title,
        caption=caption,
        tile_px=tile_px,
        margin_px=margin_px,
    )


def side_by_side(
    originals: Tensor,
    reconstructions: Tensor,
    *,
    labels: Sequence[str] = (),
    amplify: float = 4.0,
    title: str = "",
    caption: str = "",
    tile_px: int = 96,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """Three rows: originals, reconstructions, and how far they are apart, amplified.

    Args:
        originals: Images (N, 3, H, W) in [-1, 1].
        reconstructions: The same images after the tokenizer.
        labels: One a column, under the reconstruction, such as "31.2 dB".
        amplify: Factor on |difference|; 0 leaves the third row out.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        tile_px: Size that small images are brought near to, by an integer factor.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.
    """
    rows = [list(to_uint8(originals)), list(to_uint8(reconstructions))]
    names = ["original", "reconstruction"]
    if amplify > 0:
        # Drawn as darkness on white: agreement is paper, error is ink.
        gap = (originals.float() - reconstructions.float().clamp(-1, 1)).abs().mean(1, True)
        rows.append(list(to_uint8((1 - gap * amplify).expand(-1, 3, -1, -1))))
        names.append(f"difference x{amplify:g}")
    columns = [""] * len(rows[0])
    tile_labels = [columns, list(labels), columns][: len(rows)] if labels else ()
    return tile_grid(
        rows,
        row_labels=names,
        tile_labels=tile_labels,
        title=title,
        caption=caption,
        tile_px=tile_px,
        margin_px=margin_px,
    )
