import pytest
import torch

from varlit.ops.blending import feather, fill_from_around, paste


@pytest.fixture
def mask():
    mask = torch.zeros(2, 9, 12, dtype=torch.bool)
    mask[:, 3:6, 4:8] = True
    return mask


@pytest.mark.parametrize("width_px", [0, 1, 3])
def test_a_feather_is_one_inside_falls_evenly_and_ends(mask, width_px):
    weight = feather(mask, width_px)
    assert weight.shape == (2, 1, 9, 12)
    assert (weight[:, 0][mask] == 1).all()
    beside = weight[0, 0, 4, 8:]
    ramp = [max(0.0, 1 - d / (width_px + 1)) for d in range(1, 5)]
    assert beside.tolist() == pytest.approx(ramp)


@pytest.mark.parametrize("feather_px", [0, 2])
def test_pasting_changes_no_bit_beyond_the_feather_nor_inside_the_mask(mask, feather_px):
    over, under = torch.randn(2, 3, 9, 12), torch.randn(2, 3, 9, 12)
    mixed = paste(over, under, mask, feather_px)
    inside = mask.unsqueeze(1).expand_as(mixed)
    reach = (feather(mask, feather_px) > 0).expand_as(mixed)
    assert torch.equal(mixed[inside], over[inside])
    assert torch.equal(mixed[~reach], under[~reach])
    ramp = reach & ~inside
    assert ramp.any() == (feather_px > 0)
    low, high = torch.minimum(over, under), torch.maximum(over, under)
    assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6))[ramp].all()


def test_each_image_may_have_a_mask_of_its_own():
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool()
    over, under = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mixed = paste(over, under, masks, 1)
    assert torch.equal(mixed[0], over[0])
    assert torch.equal(mixed[1], under[1])


def test_a_hole_in_one_colour_gets_that_colour_and_nothing_known_changes(mask):
    images = torch.full((2, 3, 9, 12), 0.25)
    hidden = torch.where(mask.unsqueeze(1), 100.0, images)
    torch.testing.assert_close(fill_from_around(hidden, mask), images)
    noisy = torch.rand(2, 3, 9, 12)
    filled = fill_from_around(noisy, mask)
    known = ~mask.unsqueeze(1).expand_as(noisy)
    assert torch.equal(filled[known], noisy[known])
    assert (filled >= noisy.min() - 1e-6).all()
    assert (filled <= noisy.max() + 1e-6).all()


def test_what_is_missing_has_no_say_in_its_filling(mask):
    images = torch.rand(2, 3, 9, 12)
    other = torch.where(mask.unsqueeze(1), float("nan"), images)
    assert torch.equal(fill_from_around(images, mask), fill_from_around(other, mask))


def test_a_filling_takes_after_the_nearer_side():
    images = torch.zeros(1, 3, 8, 32)
    images[..., 24:] = 1
    is_missing = torch.zeros(1, 8, 32, dtype=torch.bool)
    is_missing[..., 8:24] = True
    row = fill_from_around(images, is_missing)[0, 0, 4]
    assert row[9] < 0.3 < 0.7 < row[22]
    assert (row.diff() >= -1e-6).all()


def test_with_nothing_known_the_filling_is_grey():
    images, everything = torch.rand(1, 3, 5, 5), torch.ones(1, 5, 5, dtype=torch.bool)
    assert not fill_from_around(images, everything).any()
