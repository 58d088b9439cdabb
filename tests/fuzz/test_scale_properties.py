"""Schedules of scales, pyramids and masks: what holds for every one of them."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import junk
from varlit.errors import UserError
from varlit.generation.editing.known import KnownTokens, known_at_scales, latent_mask, pixel_mask
from varlit.ops.pyramid import enlarge, shrink, to_map, to_sequence
from varlit.ops.raster import RasterScan
from varlit.ops.scales import MAX_SCALES, MAX_SIDE, Scales

sides = st.sets(st.integers(1, 12), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))
batches = st.integers(1, 3)
numbers = st.integers(0, 2**32 - 1)


def is_schedule(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value or len(value) > MAX_SCALES:
        return False
    if any(isinstance(side, bool) or not isinstance(side, int | float) for side in value):
        return False
    if not all(1 <= side <= MAX_SIDE and int(side) == side for side in value):
        return False
    return all(a < b for a, b in pairwise(value))


@given(sides)
def test_maps_follow_each_other_and_fill_the_pyramid(given_sides: tuple[int, ...]) -> None:
    scales = Scales(given_sides)
    slices = [scales.token_slice(k) for k in range(scales.num_scales)]
    assert slices[0].start == 0
    assert slices[-1].stop == scales.num_tokens == sum(scales.lengths)
    assert all(a.stop == b.start for a, b in pairwise(slices))
    assert list(scales.lengths) == [side**2 for side in given_sides]
    assert [part.start for part in slices] == list(scales.offsets)
    assert len(set(scales.names)) == scales.num_scales == len(scales.frame_names)
    for num_phi in range(6):
        chosen = scales.phi_index(num_phi)
        assert len(chosen) == scales.num_scales
        assert list(chosen) == sorted(chosen)
        assert set(chosen) <= set(range(num_phi or scales.num_scales))


@given(sides, batches, numbers)
def test_what_is_split_is_merged_to_the_same(
    given_sides: tuple[int, ...], count: int, seed: int
) -> None:
    scales = Scales(given_sides)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4096, (count, scales.num_tokens), generator=draw)
    assert torch.equal(scales.merge(scales.split(tokens)), tokens)
    assert torch.equal(scales.merge(scales.maps(tokens)), tokens)
    assert [tuple(m.shape[1:]) for m in scales.maps(tokens)] == [(s, s) for s in given_sides]
    with pytest.raises(UserError, match="tokens; got"):
        scales.split(tokens[:, 1:])
    with pytest.raises(UserError, match="tokens; got"):
        scales.merge([*scales.maps(tokens), torch.zeros(count, 1, dtype=torch.int64)])


@given(st.one_of(sides.map(Scales), st.integers(1, 6).map(RasterScan)))
def test_a_step_sees_itself_and_all_before_it(steps: Any) -> None:
    mask, levels = steps.block_causal_mask(), steps.levels()
    assert len(levels) == steps.num_tokens
    for k in range(steps.num_steps):
        part = steps.token_slice(k)
        assert bool((levels[part] == k).all())
        assert bool(mask[part, : part.stop].all())
        assert not bool(mask[part, part.stop :].any())


@given(st.one_of(st.lists(st.integers(-3, 2000), max_size=6), junk))
def test_any_other_schedule_is_a_mistake_of_the_user(value: Any) -> None:
    if is_schedule(value):
        assert Scales(value).sides == tuple(value)
    else:
        with pytest.raises(UserError):
            Scales(value)


@given(batches, st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), numbers)
def test_resizing_keeps_what_is_flat_and_sequences_what_is_not(
    count: int, channels: int, side: int, other: int, seed: int
) -> None:
    f = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(to_map(to_sequence(f), side), f)
    assert shrink(f, side) is f
    assert enlarge(f, side) is f
    flat = torch.full_like(f, 0.75)
    for resized in (shrink(flat, min(other, side)), enlarge(flat, max(other, side))):
        assert torch.allclose(resized, torch.tensor(0.75))
    if side % other == 0:
        assert torch.allclose(shrink(f, other).mean((2, 3)), f.mean((2, 3)), atol=1e-5)


def tokenizer_of(scales: Scales, stride: int) -> Any:
    config = SimpleNamespace(image_size=scales.final_side * stride)
    return SimpleNamespace(scales=scales, config=config)


@given(sides, st.sampled_from([1, 2, 4]), batches, numbers, st.floats(0, 1))
def test_a_cell_is_drawn_exactly_if_its_pixels_touch_the_mask(
    given_sides: tuple[int, ...], stride: int, count: int, seed: int, share: float
) -> None:
    scales = Scales(given_sides)
    tokenizer, side = tokenizer_of(scales, stride), scales.final_side * stride
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, side, side, generator=draw) < share
    cells = latent_mask(mask, count, tokenizer)
    expected = mask.unflatten(1, (-1, stride)).unflatten(3, (-1, stride)).any(4).any(2)
    assert torch.equal(cells, expected)
    assert torch.equal(pixel_mask(mask, count, tokenizer), mask)
    of_cells = pixel_mask(cells, count, tokenizer)
    assert torch.equal(latent_mask(of_cells, count, tokenizer), cells)
    assert bool((of_cells | ~mask).all()), "the pixels of its cells hold the mask"


@given(st.lists(st.integers(0, 9), max_size=4), st.floats(width=32) | st.none(), batches)
def test_a_mask_of_another_form_is_refused(shape: list[int], fill: Any, count: int) -> None:
    tokenizer = tokenizer_of(Scales((1, 2, 4)), 2)
    fits = shape[-2:] in ([8, 8], [4, 4]) and len(shape) in (2, 3)
    fits = fits and (len(shape) == 2 or shape[0] in (1, count))
    mask: Any = None if fill is None else torch.full(shape, fill)
    is_number = mask is not None and bool(mask.isfinite().all())
    if fits and is_number:
        assert latent_mask(mask, count, tokenizer).shape == (count, 4, 4)
    else:
        with pytest.raises(UserError, match="mask must be"):
            latent_mask(mask, count, tokenizer)


@given(sides, batches, numbers, st.booleans())
def test_known_cells_are_known_at_the_finest_scale_and_never_more_for_a_smaller_mask(
    given_sides: tuple[int, ...], count: int, seed: int, free_first: bool
) -> None:
    scales = Scales(given_sides)
    draw = torch.Generator().manual_seed(seed)
    side = scales.final_side
    known = torch.rand(count, side, side, generator=draw) < 0.6
    at_scales = known_at_scales(known, scales, free_first)
    assert at_scales.shape == (count, scales.num_tokens)
    assert at_scales.dtype == torch.bool
    if side > 1:
        assert torch.equal(scales.maps(at_scales)[-1], known)
    everything = known_at_scales(torch.ones_like(known), scales, free_first)
    assert bool(everything.all())
    nothing = known_at_scales(torch.zeros_like(known), scales, free_first)
    is_first = scales.levels() < (given_sides[0] == 1 and not free_first)
    assert torch.equal(nothing, is_first.expand_as(nothing))


@given(sides, batches, numbers)
def test_known_tokens_stand_and_the_others_are_drawn(
    given_sides: tuple[int, ...], count: int, seed: int
) -> None:
    scales = Scales(given_sides)
    draw = torch.Generator().manual_seed(seed)
    shape = (count, scales.num_tokens)
    tokens = torch.randint(100, shape, generator=draw)
    drawn = torch.randint(100, 200, shape, generator=draw)
    known = KnownTokens(tokens, torch.rand(shape, generator=draw) < 0.5)
    parts = [known.at(drawn[:, (s := scales.token_slice(k))], s) for k in range(len(given_sides))]
    found = torch.cat(parts, 1)
    assert torch.equal(found < 100, known.is_known)
    assert torch.equal(found[known.is_known], tokens[known.is_known])
    part = known.rows(slice(0, 1))
    assert torch.equal(part.tokens, tokens[:1])
    with pytest.raises(UserError, match="one shape"):
        KnownTokens(tokens, known.is_known[:, :-1])
