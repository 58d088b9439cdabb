import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.ops.scales import OFFICIAL_PHI_INDEX, Scales

OFFICIAL = Scales((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
SCHEDULES = [(1,), (5,), (1, 2, 3), (2, 3, 7), OFFICIAL.sides]
each_schedule = pytest.mark.parametrize("scales", [Scales(s) for s in SCHEDULES], ids=str)


def test_the_official_256_px_schedule_has_680_tokens_and_the_512_px_one_2240():
    assert OFFICIAL.num_tokens == 680
    assert Scales((1, 2, 3, 4, 6, 9, 13, 18, 24, 32)).num_tokens == 2240


@each_schedule
def test_slices_partition_the_pyramid_and_levels_agree(scales):
    levels = scales.levels()
    covered = []
    for k, side in enumerate(scales.sides):
        part = range(scales.num_tokens)[scales.token_slice(k)]
        assert len(part) == scales.lengths[k] == side**2
        assert levels[scales.token_slice(k)].unique().tolist() == [k]
        covered += part
    assert covered == list(range(scales.num_tokens))


@each_schedule
@pytest.mark.parametrize("tail", [(), (3,)])
def test_merge_undoes_split(scales, tail):
    pyramid = torch.randn(2, scales.num_tokens, *tail)
    parts = scales.split(pyramid)
    assert [part.shape[1] for part in parts] == list(scales.lengths)
    assert torch.equal(torch.cat(parts, dim=1), pyramid)
    if not tail:
        assert torch.equal(scales.merge(parts), pyramid)


@each_schedule
def test_merge_undoes_maps_and_maps_are_row_major(scales):
    pyramid = torch.arange(2 * scales.num_tokens).view(2, -1)
    maps = scales.maps(pyramid)
    assert torch.equal(scales.merge(maps), pyramid)
    last = maps[-1]
    side = scales.final_side
    assert last.shape == (2, side, side)
    assert torch.equal(last[1, side - 1], pyramid[1, -side:])


@each_schedule
def test_the_mask_lets_a_token_see_its_own_map_and_all_coarser_ones(scales):
    mask = scales.block_causal_mask()
    assert mask.dtype == torch.bool
    for k in range(scales.num_scales):
        end = scales.offsets[k] + scales.lengths[k]
        rows = mask[scales.token_slice(k)]
        assert rows[:, :end].all()
        assert not rows[:, end:].any()


def numpy_phi_index(num_scales, num_phi):
    """The official choice in its own words (`PhiPartiallyShared`)."""
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    ticks = np.linspace(margin, 1 - margin, num_phi)
    places = [k / (num_scales - 1) for k in range(num_scales)]
    return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)


def test_the_official_phi_table_is_what_the_released_weights_were_trained_with():
    assert OFFICIAL.phi_index(4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert set(OFFICIAL_PHI_INDEX) == {(10, 4)}, "any other entry must be tested too"


@pytest.mark.parametrize("num_phi", range(1, 9))
def test_every_other_phi_index_falls_as_in_numpy(num_phi):
    for num_scales in range(2, 25):
        if (num_scales, num_phi) not in OFFICIAL_PHI_INDEX:
            ours = Scales(tuple(range(1, num_scales + 1))).phi_index(num_phi)
            assert ours == numpy_phi_index(num_scales, num_phi), num_scales


@pytest.mark.parametrize("num_phi", [1, 4, 0])
def test_a_single_scale_takes_the_first_phi(num_phi):
    assert Scales((4,)).phi_index(num_phi) == (0,)


def test_phi_zero_means_one_for_each_scale():
    assert OFFICIAL.phi_index(0) == tuple(range(10))


@pytest.mark.parametrize("sides", [(), (0, 1), (-1,), (1, 2, 2), (3, 2), (1, 3, 2, 4)])
def test_sides_that_do_not_grow_are_refused_with_an_example(sides):
    with pytest.raises(UserError, match=r"positive and grow; got .*Try"):
        Scales(sides)


@pytest.mark.parametrize("method", ["split", "maps"])
def test_a_pyramid_of_other_scales_is_refused(method):
    with pytest.raises(UserError, match="14 tokens; got 13"):
        getattr(Scales((1, 2, 3)), method)(torch.zeros(1, 13))


def test_missing_maps_are_refused():
    with pytest.raises(UserError, match="14 tokens; got 5"):
        Scales((1, 2, 3)).merge([torch.zeros(1, 1, 1), torch.zeros(1, 2, 2)])


def test_scales_are_values():
    assert Scales([1, 2.0, 4]) == Scales((1, 2, 4))
    assert len({Scales((1, 2)), Scales((1, 2))}) == 1
    assert Scales((1, 16)).names == ("01x01", "16x16")
