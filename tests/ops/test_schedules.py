import itertools
import math

import pytest

from varlit.ops.schedules import SCHEDULE_KINDS, cosine_between, ema_decay, lr_factor

each_kind = pytest.mark.parametrize("kind", SCHEDULE_KINDS)


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


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_it_falls_and_ends_at_the_final_share_on_the_last_step(kind, final):
    factors = [lr_factor(kind, step, 50, 5, final=final) for step in range(5, 50)]
    assert all(a >= b for a, b in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(final)
    assert factors[-2] > final
    assert lr_factor(kind, 1000, 50, 5, final=final) == pytest.approx(final), "never rises again"


def test_linear_holds_the_peak_for_its_flat_part():
    factors = [lr_factor("linear", step, 101, flat=0.05) for step in range(101)]
    assert factors[:6] == pytest.approx([1.0] * 6)
    assert factors[6] < 1
    falls = [a - b for a, b in itertools.pairwise(factors[5:])]
    assert falls == pytest.approx([1 / 95] * 95)


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
