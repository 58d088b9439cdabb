import numpy as np
import pytest
import torch
from PIL import Image

from varlit.errors import UserError
from varlit.viz import beside, image_grid, save_png, side_by_side, tile_grid, to_uint8
from varlit.viz.grids import magnification, upscale
from varlit.viz.style import GAP_PX, MARGIN_PX, PAPER


def solid(value, number=1, side=32):
    return torch.full((number, 3, side, side), float(value))


def has_colour(picture, colour):
    return bool((picture == np.asarray(colour, dtype=np.uint8)).all(axis=-1).any())


def test_bytes_are_rounded_and_clamped():
    images = torch.tensor([-1.0, 0.0, 1.0, 7.0, -7.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert to_uint8(images)[:, 0, 0, 0].tolist() == [0, 128, 255, 255, 0]
    assert to_uint8(images.bfloat16()).shape == (5, 1, 1, 3)


def test_small_images_grow_by_whole_factors_and_large_ones_stay():
    assert [magnification(side) for side in (8, 32, 64, 256)] == [12, 3, 2, 1]
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = upscale(pixels, 3)
    assert large.shape == (6, 6, 3)
    assert np.array_equal(large[1::3, 1::3], pixels)
    assert len(np.unique(large.reshape(-1, 3), axis=0)) == 4


def test_without_margins_and_labels_a_grid_is_its_tiles_and_gaps():
    picture = image_grid(solid(1, number=5), columns=2, margin_px=0)
    assert picture.shape == (3 * 96 + 2 * GAP_PX, 2 * 96 + GAP_PX, 3)
    assert (picture[:96, :96] == 255).all()
    assert (picture[:96, 96 : 96 + GAP_PX] == PAPER).all()
    assert (picture[-96:, -96:] == PAPER).all(), "the sixth place is empty"


def test_images_are_hung_row_by_row():
    shades = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    picture = image_grid(shades, columns=2, margin_px=0)
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert corners.tolist() == to_uint8(shades)[:, 0, 0, 0].tolist()


def test_labels_and_titles_leave_the_tiles_alone_and_make_room():
    bare = image_grid(solid(-1, 4), 2, margin_px=0)
    told = image_grid(
        solid(-1, 4), 2, row_labels=["cat", "dog"], column_labels=["a", "b"], title="Pets"
    )
    assert told.shape[0] > bare.shape[0] + 2 * MARGIN_PX
    assert told.shape[1] > bare.shape[1] + 2 * MARGIN_PX
    black = (told == 0).all(axis=-1).sum()
    assert black == 4 * 96 * 96


def test_the_sheet_is_wide_enough_for_a_long_title():
    title = "a title that is much wider than one small tile"
    assert image_grid(solid(0), 1, title=title).shape[1] > 400


def test_only_rows_with_tile_labels_make_room_for_them():
    tile = to_uint8(solid(0))[0]
    none = tile_grid([[tile], [tile]], margin_px=0)
    one = tile_grid([[tile], [tile]], tile_labels=[[""], ["20 dB"]], margin_px=0)
    two = tile_grid([[tile], [tile]], tile_labels=[["x"], ["20 dB"]], margin_px=0)
    assert one.shape[0] - none.shape[0] == two.shape[0] - one.shape[0] > 10


def test_equal_images_differ_by_white_paper_and_errors_are_dark():
    originals = solid(0, number=2)
    picture = side_by_side(originals, originals, margin_px=0)
    assert (picture[-96:, -96:] == 255).all()
    picture = side_by_side(originals, originals + 0.25, amplify=4, margin_px=0)
    assert (picture[-96:, -96:] == 128).all(), "4 x 0.25 of the way from 1 to -1"
    assert side_by_side(originals, originals, amplify=0, margin_px=0).shape[0] == 2 * 96 + GAP_PX


def test_pictures_stand_side_by_side_on_paper():
    tall, wide = np.zeros((40, 10, 3), np.uint8), np.zeros((10, 40, 3), np.uint8)
    picture = beside([tall, wide], gap_px=5)
    assert picture.shape == (40, 55, 3)
    assert (picture[20:, 10:] == PAPER).all()


def test_no_images_is_refused():
    with pytest.raises(UserError, match="at least one image"):
        tile_grid([])


def test_a_png_holds_every_pixel_and_nothing_else_is_left(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path = save_png(picture, tmp_path / "new" / "folder" / "x.png")
    assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]
