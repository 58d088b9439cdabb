import numpy as np

from varlit.data.draws import draw_below, draw_integers


def test_draws_depend_on_every_key_and_on_nothing_else() -> None:
    ids = np.arange(1000)
    base = draw_integers(0, ids, 1)
    assert np.array_equal(base, draw_integers(0, ids, 1))
    assert np.array_equal(base[7], draw_integers(0, 7, 1)[0])
    for other in (draw_integers(1, ids, 1), draw_integers(0, ids, 2), draw_integers(0, ids + 1, 1)):
        assert not (base == other).any()


def test_draws_below_a_limit_are_evenly_spread() -> None:
    counts = np.bincount(draw_below(8, 3, np.arange(80_000), 1), minlength=8)
    assert counts.sum() == 80_000
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations are 470


def test_the_sequence_is_frozen() -> None:
    # A change here would silently change every cache and every resumed run.
    assert draw_integers(0, 0)[0] == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
