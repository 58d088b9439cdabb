import numpy as np
import torch

from varlit.viz.grids import to_uint8
from varlit.viz.masks import edge, edit_sheet, hatched
from varlit.viz.style import ACCENT, GAP_PX


def test_a_hatch_leaves_the_rest_alone_and_the_picture_visible():
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    mask = np.zeros((40, 50), dtype=bool)
    mask[10:30, 20:45] = True
    drawn = hatched(picture, mask)
    assert np.array_equal(drawn[~mask], picture[~mask])
    is_ink = (drawn == ACCENT).all(-1)
    assert is_ink[edge(mask)].all()
    assert 0.15 < is_ink[mask].mean() < 0.6
    veiled = mask & ~is_ink
    assert np.corrcoef(drawn[veiled].ravel(), picture[veiled].ravel())[0, 1] > 0.99


def test_an_edge_is_the_border_of_a_mask_but_not_of_the_picture():
    mask = np.zeros((6, 6), dtype=bool)
    mask[:, 3:] = True
    assert edge(mask).sum() == 6
    assert edge(mask)[:, 3].all()
    assert not edge(np.ones((4, 4), dtype=bool)).any()


def test_a_sheet_shows_original_mask_and_variants_in_this_order():
    side, variants = 96, torch.stack([torch.full((3, 96, 96), v) for v in (-1.0, 0.0, 1.0)])
    original = torch.full((3, side, side), 0.5)
    mask = torch.zeros(side, side)
    mask[40:60] = 1
    sheet = edit_sheet(original, mask, variants, tile_px=96, margin_px=0)
    shades = [sheet[5, i * (side + GAP_PX) + 5].tolist() for i in range(5)]
    assert shades == [
        to_uint8(x.view(1, 3, 1, 1))[0, 0, 0].tolist()
        for x in (original[:, 0, 0], original[:, 0, 0], *variants[:, :, 0, 0])
    ]
    assert (sheet[40, side + GAP_PX] == ACCENT).all()


def test_wide_canvases_go_on_in_a_second_row():
    original, variants = torch.zeros(3, 100, 500), torch.zeros(3, 3, 100, 500)
    sheet = edit_sheet(original, torch.ones(100, 500), variants, labels=["a", "b", "c"])
    assert sheet.shape[1] < 1200
    assert sheet.shape[0] > 300
