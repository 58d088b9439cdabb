import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.ops.scales import Scales
from varlit.viz import growing_strip, token_map_heat
from varlit.viz.pyramids import code_colours, fit_square, plain_name
from varlit.viz.style import GAP_PX

SCALES = Scales((1, 2, 3))


def test_names_are_written_as_people_do():
    assert plain_name("04x04") == "4 x 4"
    assert plain_name("10x10") == "10 x 10"
    assert plain_name("mean") == "mean"


def test_a_strip_has_a_column_a_scale_and_one_for_the_original():
    frames = [torch.full((2, 3, 32, 32), value) for value in (-1.0, -0.5, 0.0)]
    originals = torch.ones(2, 3, 32, 32)
    strip = growing_strip(frames, SCALES.names, originals=originals, margin_px=0)
    assert strip.shape[1] == 4 * 96 + 3 * GAP_PX
    bottom = strip[-1, :: 96 + GAP_PX, 0]
    assert bottom.tolist() == [0, 64, 128, 255]


def test_a_frame_without_a_name_is_refused():
    with pytest.raises(UserError, match="2 frames and 3 scale names"):
        growing_strip([torch.zeros(1, 3, 8, 8)] * 2, SCALES.names)


def test_equal_codes_have_equal_colours_and_near_numbers_unlike_ones():
    colours = code_colours(4096).astype(int)
    assert colours.shape == (4096, 3)
    assert np.abs(colours[1:] - colours[:-1]).sum(axis=1).min() > 60


def test_token_maps_show_their_codes():
    tokens = torch.zeros(1, SCALES.num_tokens, dtype=torch.long)
    tokens[0, SCALES.token_slice(1)] = torch.tensor([1, 2, 3, 1])
    picture = token_map_heat(tokens, SCALES, tile_px=96, margin_px=0)
    colours = code_colours(4)
    second = picture[-96:, 96 + GAP_PX :]
    corners = second[[0, 0, 95, 95], [0, 95, 0, 95]]
    assert np.array_equal(corners, colours[[1, 2, 3, 1]])


def test_maps_whose_side_does_not_divide_the_tile_fill_it():
    squares = fit_square(np.arange(25, dtype=np.uint8).reshape(1, 5, 5, 1).repeat(3, -1), 96)
    assert squares.shape == (1, 96, 96, 3)
    assert set(np.unique(squares)) == set(range(25))
