"""Small charts: bars of code usage by scale, and lines over steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from varlit.viz.pyramids import plain_name
from varlit.viz.style import (
    ACCENT,
    HAIRLINE,
    LABEL_PX,
    MARGIN_PX,
    MUTED,
    REACH,
    SERIES,
    WARNING,
    blank,
    text_width,
    with_heading,
    write,
)

COLLAPSED_SHARE = 0.05  # of what a scale can attain: below this its bar is drawn in warning colour
SMOOTHING = 4  # lines are drawn this many times larger, then averaged down


def usage_bars(
    usage: Sequence[float],
    attainable: Sequence[float],
    names: Sequence[str],
    *,
    title: str = "",
    caption: str = "",
    width_px: int = 640,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """One bar a scale: the share of the codebook that was hit, against what could be hit.

    Args:
        usage: Share of the codes in 0..1, K numbers.
        attainable: Largest share that so many tokens could hit, K numbers.
        names: K labels, such as `Scales.names`.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        width_px: Width of the chart without margins.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.
    """
    labels = [plain_name(name) for name in names]
    left = max(text_width(label, LABEL_PX) for label in labels) + 14
    room = width_px - left - text_width("100 % of 100 % in reach", LABEL_PX) - 14
    pitch, thick = 30, 18
    sheet = blank(pitch * len(labels) - (pitch - thick), width_px)
    pen = ImageDraw.Draw(sheet)
    for i, (label, used, reach) in enumerate(zip(labels, usage, attainable, strict=True)):
        y = i * pitch
        middle = y + thick // 2
        collapsed = used < COLLAPSED_SHARE * reach
        colour = WARNING if collapsed else ACCENT
        pen.rectangle((left, y, left + room, y + thick - 1), fill=HAIRLINE)
        for share, fill in ((reach, REACH), (used, colour)):
            if share > 0:
                end = left + max(1, round(share * room))
                pen.rectangle((left, y, end, y + thick - 1), fill=fill)
        write(sheet, (left - 14, middle), label, anchor="rm")
        text = f"{percent(used)} of {percent(reach)} in reach"
        write(sheet, (left + room + 14, middle), text, colour=MUTED, anchor="lm")
    return with_heading(np.asarray(sheet), title, caption, margin_px)


def percent(share: float) -> str:
    """A share as `3 %`, with a decimal where it is small and not zero."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str = "",
    caption: str = "",
    x_label: str = "step",
    width_px: int = 640,
    height_px: int = 300,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """A line chart of few series, each labelled at its end; values not finite are left out.

    Args:
        series: Name to (x values, y values); at most five are told apart by colour.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        x_label: What the horizontal axis counts.
        width_px: Width of the chart without margins.
        height_px: Height of the chart without margins.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.
    """
    points = {name: finite(*values) for name, values in series.items()}
    points = {name: pairs for name, pairs in points.items() if pairs}
    xs = [x for pairs in points.values() for x, _ in pairs]
    ys = [y for pairs in points.values() for _, y in pairs]
    y_ticks, x_ticks = round_ticks(ys), round_ticks(xs)
    left = max(text_width(f"{tick:g}", LABEL_PX) for tick in y_ticks) + 12
    right = max((text_width(name, LABEL_PX) for name in points), default=0) + 14
    box = (left, 8, width_px - right, height_px - 28)
    x_span = (min(xs, default=0.0), max(xs, default=1.0))
    y_span = (y_ticks[0], y_ticks[-1])
    sheet = blank(height_px, width_px)
    pen = ImageDraw.Draw(sheet)
    for tick in y_ticks:
        y = round(place(tick, y_span, box[3], box[1]))
        pen.line((box[0], y, box[2], y), fill=HAIRLINE)
        write(sheet, (left - 12, y), f"{tick:g}", colour=MUTED, anchor="rm")
    for tick in x_ticks:
        if x_span[0] <= tick <= x_span[1]:
            x = round(place(tick, x_span, box[0], box[2]))
            write(sheet, (x, box[3] + 8), f"{tick:,g}", colour=MUTED, anchor="ma")
    write(sheet, (width_px, box[3] + 8), x_label, colour=MUTED, anchor="ra")
    paths = [
        [(place(x, x_span, box[0], box[2]), place(y, y_span, box[3], box[1])) for x, y in pairs]
        for pairs in points.values()
    ]
    sheet = draw_smooth(sheet, paths)
    ends = spread([path[-1][1] for path in paths], LABEL_PX + 3)
    for i, (name, y_end) in enumerate(zip(points, ends, strict=True)):
        colour = SERIES[i % len(SERIES)]
        write(sheet, (box[2] + 10, round(y_end)), name, colour=colour, anchor="lm")
    return with_heading(np.asarray(sheet), title, caption, margin_px)


def finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Points (x, y) whose y is a number."""
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]


def draw_smooth(sheet: Image.Image, paths: Sequence[Sequence[tuple[float, float]]]) -> Image.Image:
    """Draw anti-aliased polylines in the colours of SERIES on a copy of the sheet."""
    large = sheet.resize((sheet.width * SMOOTHING, sheet.height * SMOOTHING), Image.Resampling.BOX)
    pen = ImageDraw.Draw(large)
    for i, path in enumerate(paths):
        scaled = [(x * SMOOTHING, y * SMOOTHING) for x, y in path]
        colour = SERIES[i % len(SERIES)]
        if len(scaled) > 1:
            pen.line(scaled, fill=colour, width=2 * SMOOTHING, joint="curve")
        for x, y in scaled[-1:]:
            dot = 3 * SMOOTHING
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=colour)
    return large.resize(sheet.size, Image.Resampling.BOX)


def place(value: float, span: tuple[float, float], start: float, end: float) -> float:
    """Where a value of a span falls between two pixels."""
    width = span[1] - span[0] or 1.0
    return start + (value - span[0]) / width * (end - start)


def round_ticks(values: Sequence[float], wanted: int = 4) -> list[float]:
    """About `wanted` round numbers that enclose the values, such as 0, 0.5, 1."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    rough = (high - low or abs(high) or 1.0) / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move labels apart until each is `gap` below the one above it, keeping their order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for above, below in itertools.pairwise(order):
        moved[below] = max(moved[below], moved[above] + gap)
    return moved
