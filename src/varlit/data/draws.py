"""Random draws as a pure function of (seed, sample id, view): no generator, no state, no order.

A *view* says which random version of a sample is meant. View 0 is the plain one (centre crop, no
flip); training uses view epoch + 1, a token cache the views 0 .. crops - 1. Because nothing else
enters, a resumed run, another number of workers or another number of processes draws the same.
"""

from __future__ import annotations

import numpy as np

PLAIN_VIEW = 0

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def draw_integers(seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """Hash integers to evenly spread 64-bit integers.

    The mixing function is SplitMix64's (Steele, Lea and Flood, 2014), applied key by key.

    Args:
        seed: The run's seed.
        *keys: What the draw depends on, as integers or arrays (n,) that broadcast.

    Returns:
        (n,) uint64; n = 1 if every key is a plain integer.
    """
    state = np.array([seed], dtype=np.int64).astype(np.uint64)
    for key in keys:
        state = _scramble(state ^ np.atleast_1d(np.asarray(key, dtype=np.int64)).astype(np.uint64))
    return state


def draw_below(limit: np.ndarray | int, seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """Draw integers from 0 .. limit - 1, as int64 (n,); see `draw_integers`."""
    bound = np.atleast_1d(np.asarray(limit, dtype=np.int64)).astype(np.uint64)
    return (draw_integers(seed, *keys) % bound).astype(np.int64)


def _scramble(state: np.ndarray) -> np.ndarray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_A
    state = (state ^ (state >> np.uint64(27))) * _MIX_B
    return state ^ (state >> np.uint64(31))
