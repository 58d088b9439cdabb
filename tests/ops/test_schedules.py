import itertools
import math

import pytest

from varlit.errors import UserError
from varlit.ops.schedules import (
    SCHEDULE_KINDS,
    SETTINGS_READ,
    cosine_between,
    ema_decay,
    lr_factor,
)

each_kind = pytest.mark.parametrize("kind", SCHEDULE_KINDS)
each_falling = pytest.mark.parametrize("kind", sorted(set(SCHEDULE_KINDS) - {"constant"}))


@each_kind
def test_warm_up_rises_in_equal_steps_to_the_peak(kind):
    factors = [lr_factor(kind, step, 100, warmup_steps=10, start=0.2) for step in range(11)]
    assert factors[0] == pytest.approx(0.2)
    assert factors[10] == pytest.approx(1.0)
    steps = [b - a for a, b in itertools.pairwise(factors)]
    assert steps == pytest.approx([0.08] * 10)


@each_kind
def test_without_warm_up_training_starts_at_the_peak(kind):
    assert lr_factor(kind, 0, 100) == 1.0


@each_falling
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_it_falls_and_ends_at_the_final_share_on_the_last_step(kind, final):
    final = final or (0.01 if kind == "exponential" else 0.0)
    factors = [lr_factor(kind, step, 50, 5, final=final) for step in range(5, 50)]
    assert all(a >= b for a, b in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(final)
    assert factors[-2] > final
    assert lr_factor(kind, 1000, 50, 5, final=final) == pytest.approx(final), "never rises again"


@pytest.mark.parametrize("kind", ["linear", "exponential"])
@pytest.mark.parametrize("flat", [0.0, 0.05, 0.5])
def test_the_peak_is_held_for_the_flat_part_and_no_longer(kind, flat):
    factors = [lr_factor(kind, step, 101, final=0.1, flat=flat) for step in range(101)]
    end = round(100 * flat) + 1
    assert factors[:end] == pytest.approx([1.0] * end)
    assert factors[end] < 1


def test_linear_falls_by_equal_steps_and_exponential_by_equal_ratios():
    line = [lr_factor("linear", step, 101, flat=0.05) for step in range(5, 101)]
    assert [a - b for a, b in itertools.pairwise(line)] == pytest.approx([1 / 95] * 95)
    curve = [lr_factor("exponential", s, 101, final=0.01, flat=0.05) for s in range(5, 101)]
    assert [b / a for a, b in itertools.pairwise(curve)] == pytest.approx([0.01 ** (1 / 95)] * 95)


def test_piecewise_is_two_lines_that_meet_half_way_above_the_straight_one():
    factors = [lr_factor("piecewise", step, 101, final=0.2, knee=0.75) for step in range(101)]
    straight = lr_factor("linear", 75, 101, final=0.2, flat=0.0)
    assert factors[75] == pytest.approx((1 + straight) / 2)
    falls = [a - b for a, b in itertools.pairwise(factors)]
    assert falls[:75] == pytest.approx([falls[0]] * 75)
    assert falls[75:] == pytest.approx([falls[75]] * 25)
    assert 0 < falls[0] < falls[75]


@each_kind
def test_a_schedule_reads_the_settings_that_it_is_said_to_read_and_no_others(kind):
    def curve(**changes):
        settings = {"final": 0.1, "flat": 0.3, "knee": 0.6} | changes
        return [lr_factor(kind, step, 40, **settings) for step in range(40)]

    changes = {"final": 0.2, "flat": 0.5, "knee": 0.8}
    read = {name for name, value in changes.items() if curve(**{name: value}) != curve()}
    assert read == set(SETTINGS_READ[kind])


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match=r"one of cosine, linear.*got `lin0`"):
        lr_factor("lin0", 1, 10)


def test_cosine_is_half_way_at_half_time():
    assert lr_factor("cosine", 50, 101, final=0.2) == pytest.approx(0.6)


def test_constant_stays():
    assert {lr_factor("constant", step, 20, final=0.1) for step in range(30)} == {1.0}


@each_kind
@pytest.mark.parametrize("total_steps", [1, 2])
def test_the_shortest_training_has_a_rate(kind, total_steps):
    for step in range(total_steps):
        assert 0 < lr_factor(kind, step, total_steps, final=0.1) <= 1


def test_weight_decay_moves_along_half_a_cosine():
    values = [cosine_between(0.05, 0.08, step, 11) for step in range(11)]
    assert (values[0], values[5], values[10]) == pytest.approx((0.05, 0.065, 0.08))
    assert values[2] == pytest.approx(0.08 - 0.03 * (0.5 + 0.5 * math.cos(0.2 * math.pi)))
    assert cosine_between(0.05, 0.08, 99, 11) == pytest.approx(0.08)


def test_averaging_warms_up_to_its_decay():
    decays = [ema_decay(0.99, n) for n in range(2000)]
    assert decays[0] == 0.1
    assert all(a <= b for a, b in itertools.pairwise(decays))
    assert decays[-1] == 0.99
