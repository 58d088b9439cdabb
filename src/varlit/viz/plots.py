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
    PAPER,
    REACH,
    SERIES,
    WARNING,
    blank,
    text_width,
    with_heading,
    write,
)

COLLAPSED_SHARE = 0.05  # of what a scale can attain: below this its bar is drawn in warning colour
FOOT_PX = 46  # under a line chart: the numbers of its axis, and below them its label
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
    marks: Mapping[str, Sequence[str]] | None = None,
    width_px: int = 640,
    height_px: int = 300,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """A line chart of few series, each labelled at its end; values not finite are left out.

    Args:
        series: Name to (x values, y values); five are told apart by colour, the next ones by the
            shape of their points as well.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        x_label: What the horizontal axis counts, written under its numbers.
        marks: What to write at each point of a series, as many as it has points; such a series
            has a dot at each point, the others at their end.
        width_px: Width of the chart without margins.
        height_px: Height of the chart without margins.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.
    """
    points = {name: pairs for name, values in series.items() if (pairs := finite(*values))}
    xs = [x for pairs in points.values() for x, _ in pairs]
    ys = [y for pairs in points.values() for _, y in pairs]
    y_ticks, x_ticks = round_ticks(ys), round_ticks(xs)
    left = max(text_width(f"{tick:g}", LABEL_PX) for tick in y_ticks) + 12
    right = max((text_width(name, LABEL_PX) for name in points), default=0) + 24
    # Names at the ends may spread downwards; a row of them must not reach the label of the axis.
    rows = (len(points) + 1) * (LABEL_PX + 3)
    height_px = max(height_px, rows + FOOT_PX + 8)
    box = (left, 8, width_px - right, height_px - FOOT_PX)
    spans = (min(xs, default=0.0), max(xs, default=1.0)), (y_ticks[0], y_ticks[-1])
    sheet = blank(height_px, width_px)
    _draw_axes(sheet, box, spans, x_ticks, y_ticks, x_label)
    paths = {
        name: [
            (place(x, spans[0], box[0], box[2]), place(y, spans[1], box[3], box[1]))
            for x, y in pairs
        ]
        for name, pairs in points.items()
    }
    told = marks or {}
    ends = fitted(spread([path[-1][1] for path in paths.values()], LABEL_PX + 3), box[3])
    keys = [(box[2] + 12.0, end) for end in ends]
    sheet = draw_smooth(sheet, list(paths.values()), [name in told for name in paths], keys)
    for i, (name, y_end) in enumerate(zip(paths, ends, strict=True)):
        colour = SERIES[i % len(SERIES)]
        write(sheet, (box[2] + 22, round(y_end)), name, colour=colour, anchor="lm")
        kept = [i for i, y in enumerate(series[name][1]) if math.isfinite(y)]
        for place_in_series, (x, y) in zip(kept, paths[name] if name in told else [], strict=False):
            text = told[name][place_in_series]
            above = (round(x), max(LABEL_PX, round(y) - 6))
            write(sheet, above, text, LABEL_PX - 2, colour, "ms")
    return with_heading(np.asarray(sheet), title, caption, margin_px)


def _draw_axes(
    sheet: Image.Image,
    box: tuple[int, int, int, int],
    spans: tuple[tuple[float, float], tuple[float, float]],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
) -> None:
    """Lines and numbers of both axes, and the name of the horizontal one under its numbers."""
    pen = ImageDraw.Draw(sheet)
    for tick in y_ticks:
        y = round(place(tick, spans[1], box[3], box[1]))
        pen.line((box[0], y, box[2], y), fill=HAIRLINE)
        write(sheet, (box[0] - 12, y), f"{tick:g}", colour=MUTED, anchor="rm")
    for tick in x_ticks:
        if spans[0][0] <= tick <= spans[0][1]:
            x = round(place(tick, spans[0], box[0], box[2]))
            write(sheet, (x, box[3] + 8), f"{tick:,g}", colour=MUTED, anchor="ma")
    write(sheet, (box[2], box[3] + 10 + LABEL_PX), x_label, colour=MUTED, anchor="ra")


def fitted(heights: Sequence[float], lowest: float) -> list[float]:
    """Labels that were spread beyond the lowest place, all moved up by as much."""
    surplus = max(0.0, max(heights, default=0.0) - lowest)
    return [height - surplus for height in heights]


def finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Points (x, y) whose y is a number."""
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]


def draw_smooth(
    sheet: Image.Image,
    paths: Sequence[Sequence[tuple[float, float]]],
    has_dots: Sequence[bool] = (),
    keys: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """Draw anti-aliased polylines in the colours of SERIES on a copy of the sheet.

    Args:
        sheet: Left as it is.
        paths: Corners in pixels.
        has_dots: Which have a dot at every corner; the others have one at their end.
        keys: Where the dot of each series is drawn once more, before its name.
    """
    large = sheet.resize((sheet.width * SMOOTHING, sheet.height * SMOOTHING), Image.Resampling.BOX)
    pen = ImageDraw.Draw(large)
    for i, path in enumerate(paths):
        scaled = [(x * SMOOTHING, y * SMOOTHING) for x, y in path]
        colour = SERIES[i % len(SERIES)]
        if len(scaled) > 1:
            pen.line(scaled, fill=colour, width=2 * SMOOTHING, joint="curve")
        first = 0 if i < len(has_dots) and has_dots[i] else -1
        scaled_key = [(x * SMOOTHING, y * SMOOTHING) for x, y in keys[i : i + 1]]
        for at in scaled[first:] + scaled_key:
            _draw_dot(pen, at, i // len(SERIES), colour)
    return large.resize(sheet.size, Image.Resampling.BOX)


def _draw_dot(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], shape: int, colour: tuple[int, int, int]
) -> None:
    """A disc; for later series a square, a triangle or a ring, so that colours may come again."""
    (x, y), r = at, (3 + bool(shape)) * SMOOTHING
    box = (x - r, y - r, x + r, y + r)
    if shape % 4 == 1:
        pen.rectangle(box, fill=colour)
    elif shape % 4 == 2:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        pen.ellipse(box, fill=PAPER if shape % 4 else colour, outline=colour, width=SMOOTHING)


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
