"""The look that all pictures share: paper, ink, one accent, small crisp labels.

Photographs and digits hang on warm white paper; text is dark, secondary text grey.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

PAPER: Colour = (250, 248, 244)
INK: Colour = (32, 35, 40)
MUTED: Colour = (118, 120, 124)
HAIRLINE: Colour = (223, 219, 211)
ACCENT: Colour = (14, 116, 128)
REACH: Colour = (186, 217, 217)  # what could be had: the accent, diluted
WARNING: Colour = (200, 84, 48)
SERIES: tuple[Colour, ...] = (ACCENT, WARNING, (92, 84, 160), (150, 126, 32), INK)

TITLE_PX = 22
LABEL_PX = 14
MARGIN_PX = 28
GAP_PX = 6


@lru_cache(maxsize=16)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in typeface at a size; no font file is looked for on the machine."""
    loaded = ImageFont.load_default(size=size_px)
    assert isinstance(loaded, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return loaded


def text_width(text: str, size_px: int) -> int:
    """Width in pixels of one line of text."""
    return int(np.ceil(font(size_px).getlength(text)))


def line_height(size_px: int) -> int:
    """Height in pixels from the top of a line of text to the top of the next one."""
    return round(size_px * 1.35)


def blank(height: int, width: int) -> Image.Image:
    """An empty sheet of paper."""
    return Image.new("RGB", (width, height), PAPER)


def write(
    sheet: Image.Image,
    at: tuple[int, int],
    text: str,
    size_px: int = LABEL_PX,
    colour: Colour = INK,
    anchor: str = "la",
) -> None:
    """Write one line of text; `anchor` as in Pillow: l/m/r, then a(scender)/m/s/d."""
    ImageDraw.Draw(sheet).text(at, text, font=font(size_px), fill=colour, anchor=anchor)


def hang(sheet: Image.Image, picture: np.ndarray, at: tuple[int, int]) -> None:
    """Paste an array (H, W, 3) uint8 with its upper left corner at (x, y)."""
    sheet.paste(Image.fromarray(picture), at)


def wrap(text: str, size_px: int, width_px: int) -> list[str]:
    """Break a sentence into lines that fit a width; a word longer than a line stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size_px) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def with_heading(
    picture: np.ndarray, title: str = "", caption: str = "", margin_px: int = MARGIN_PX
) -> np.ndarray:
    """Put a picture on paper with margins, a title line and a grey caption above it.

    The sheet is as wide as the picture or the title; a longer caption is wrapped to that width.
    """
    inner = max(picture.shape[1], text_width(title, TITLE_PX))
    if picture.shape[1] < 320 and caption:
        inner = max(inner, min(320, text_width(caption, LABEL_PX)))
    captions = wrap(caption, LABEL_PX, inner)
    head = (line_height(TITLE_PX) + 4 if title else 0) + len(captions) * line_height(LABEL_PX)
    head += 14 if head else 0
    sheet = blank(picture.shape[0] + head + 2 * margin_px, inner + 2 * margin_px)
    y = margin_px
    if title:
        write(sheet, (margin_px, y), title, TITLE_PX)
        y += line_height(TITLE_PX) + 4
    for line in captions:
        write(sheet, (margin_px, y), line, LABEL_PX, MUTED)
        y += line_height(LABEL_PX)
    hang(sheet, picture, (margin_px, margin_px + head))
    return np.asarray(sheet)
