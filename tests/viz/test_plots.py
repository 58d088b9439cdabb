import math

import numpy as np

from varlit.viz import lines, usage_bars
from varlit.viz.plots import percent, round_ticks, spread
from varlit.viz.style import ACCENT, REACH, WARNING


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
