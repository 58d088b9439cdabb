"""One tall picture of a whole run: titled sections under each other, of bounded width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from varlit.errors import UserError
from varlit.viz.style import (
    HAIRLINE,
    LABEL_PX,
    MARGIN_PX,
    MUTED,
    TITLE_PX,
    blank,
    hang,
    line_height,
    wrap,
    write,
)

MAX_WIDTH_PX = 1200
MARGIN = 2 * MARGIN_PX
HEADLINE_PX = 32


@dataclass(frozen=True)
class Section:
    """A part of a poster: draw its image with `margin_px=0`, the poster has its own margins."""

    title: str
    image: np.ndarray  # (H, W, 3) uint8
    caption: str = ""


def poster(
    sections: Sequence[Section],
    *,
    headline: str = "",
    footer: str = "",
    max_width_px: int = MAX_WIDTH_PX,
) -> np.ndarray:
    """Stack titled sections into one picture.

    Args:
        sections: From top to bottom; images wider than the poster are scaled down to it.
        headline: Large line at the top.
        footer: Small grey line at the bottom, such as the command that drew the poster.
        max_width_px: Bound on the width, margins included.

    Returns:
        Picture (H, W, 3) uint8.

    Raises:
        UserError: If there are no sections.
    """
    if not sections:
        raise UserError("a poster needs at least one section; got none.")
    bound = max_width_px - 2 * MARGIN
    images = [shrink(section.image, bound) for section in sections]
    inner = max(image.shape[1] for image in images)
    parts = [
        section_sheet(section, image, inner)
        for section, image in zip(sections, images, strict=True)
    ]
    if headline:
        top = blank(line_height(HEADLINE_PX) + MARGIN_PX, inner)
        write(top, (0, 0), headline, HEADLINE_PX)
        parts.insert(0, np.asarray(top))
    if footer:
        parts.append(text_block(footer, inner))
    rule = blank(MARGIN_PX * 2, inner)
    rule.paste(HAIRLINE, (0, MARGIN_PX, inner, MARGIN_PX + 1))
    stacked = parts[:1]
    for i, part in enumerate(parts[1:]):
        stacked += [part] if headline and i == 0 else [np.asarray(rule), part]
    height = sum(part.shape[0] for part in stacked)
    sheet = blank(height + 2 * MARGIN, inner + 2 * MARGIN)
    y = MARGIN
    for part in stacked:
        hang(sheet, part, (MARGIN, y))
        y += part.shape[0]
    return np.asarray(sheet)


def section_sheet(section: Section, image: np.ndarray, width_px: int) -> np.ndarray:
    """A title, its caption and the image at the left edge of a sheet of a width."""
    caption = text_block(section.caption, width_px)
    head = line_height(TITLE_PX) + 4
    above = head + caption.shape[0] + 14
    sheet = blank(above + image.shape[0], width_px)
    write(sheet, (0, 0), section.title, TITLE_PX)
    hang(sheet, caption, (0, head))
    hang(sheet, image, (0, above))
    return np.asarray(sheet)


def text_block(text: str, width_px: int) -> np.ndarray:
    """Grey text wrapped to a width; no text gives no rows."""
    rows = wrap(text, LABEL_PX, width_px)
    pitch = line_height(LABEL_PX)
    sheet = blank(pitch * len(rows), width_px)
    for i, row in enumerate(rows):
        write(sheet, (0, i * pitch), row, colour=MUTED)
    return np.asarray(sheet)


def shrink(image: np.ndarray, width_px: int) -> np.ndarray:
    """Scale a picture down to a width; one that fits is left as it is."""
    if image.shape[1] <= width_px:
        return image
    height = round(image.shape[0] * width_px / image.shape[1])
    smaller = Image.fromarray(image).resize((width_px, height), Image.Resampling.LANCZOS)
    return np.asarray(smaller)
