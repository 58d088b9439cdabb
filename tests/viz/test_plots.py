import math

import numpy as np

from varlit.viz import lines, usage_bars
from varlit.viz.plots import FOOT_PX, fitted, percent, round_ticks, spread
from varlit.viz.style import ACCENT, LABEL_PX, MARGIN_PX, REACH, WARNING, text_width


def pixels_of(picture, colour):
    return int((picture == np.asarray(colour, dtype=np.uint8)).all(axis=-1).sum())


def test_bars_are_as_long_as_the_usage_and_its_reach():
    half = usage_bars([0.5], [1.0], ["04x04"])
    full = usage_bars([1.0], [1.0], ["04x04"])
    assert abs(2 * pixels_of(half, ACCENT) - pixels_of(full, ACCENT)) < 40
    assert pixels_of(half, REACH) > 0
    assert pixels_of(full, REACH) == 0


def test_only_a_scale_far_below_its_reach_is_drawn_as_a_warning():
    assert pixels_of(usage_bars([0.04], [0.05], ["01x01"]), WARNING) == 0
    assert pixels_of(usage_bars([0.04], [1.0], ["01x01"]), WARNING) > 0


def test_shares_are_told_with_the_digits_that_matter():
    assert [percent(s) for s in (0, 0.003, 0.0999, 0.5, 1)] == [
        "0 %",
        "0.3 %",
        "10 %",
        "50 %",
        "100 %",
    ]


def test_ticks_are_round_and_enclose_the_values():
    assert round_ticks([0.0, 1.0]) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for values in ([3.0, 3.0], [-7.3, 12.9], [1e-5, 9e-5], [0, 123456]):
        ticks = round_ticks(values)
        assert ticks[0] <= min(values) <= max(values) <= ticks[-1]
        assert 2 <= len(ticks) <= 7


def test_labels_that_would_overlap_are_moved_apart():
    assert spread([10.0, 11.0, 50.0], gap=5) == [10.0, 15.0, 50.0]


def test_a_chart_bears_gaps_single_points_and_flat_lines():
    picture = lines(
        {
            "a": ([0, 1, 2], [1.0, math.nan, 3.0]),
            "b": ([2], [2.0]),
            "flat": ([0, 2], [1.0, 1.0]),
            "nothing": ([0, 1], [math.nan, math.inf]),
        },
        title="t",
        caption="c",
    )
    assert picture.dtype == np.uint8
    assert pixels_of(picture, ACCENT) > 50


def test_names_of_series_never_reach_the_label_of_the_axis():
    falling = {f"series {i}": ([0, 1, 2], [9.0, 5.0, 1.0 + i / 1000]) for i in range(14)}
    picture = lines(falling, x_label="IS")
    foot = picture[-(FOOT_PX + MARGIN_PX) + 16 : -MARGIN_PX]
    away = foot[:, -MARGIN_PX - text_width("series 10", LABEL_PX) :]  # where the names are
    assert (away == away[0, -1]).all()
    assert fitted([10.0, 40.0], lowest=30.0) == [0.0, 30.0]
    assert fitted([10.0, 20.0], lowest=30.0) == [10.0, 20.0]


def test_the_points_of_a_series_are_marked_and_named():
    series = {"a": ([0, 1, 2, 3], [1.0, math.nan, 3.0, 2.0])}
    plain, marked = lines(series), lines(series, marks={"a": ["0", "1", "1.5", "2"]})
    assert pixels_of(marked, ACCENT) > pixels_of(plain, ACCENT) + 25


def test_the_sixth_series_does_not_look_like_the_first():
    flat = {str(i): ([0, 1], [float(i), float(i)]) for i in range(6)}
    six = lines(flat, marks={name: ["", ""] for name in flat})
    rows = np.flatnonzero((six == np.asarray(ACCENT, np.uint8)).all(-1).sum(axis=1) > 100)
    first, last = rows.max(), rows.min()  # series 0 is the lowest line
    window = [six[row - 6 : row + 7, 40:80] for row in (first, last)]
    assert pixels_of(window[1], ACCENT) > pixels_of(window[0], ACCENT)
