import pytest
import torch
from torch.nn import functional as F

from varlit.losses.augment import AUGMENT_KINDS, augment, blur

SIDE = 16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(64, 3, SIDE, SIDE) * 2 - 1


def test_nothing_to_do_returns_the_very_images_and_draws_nothing(images):
    before = torch.get_rng_state()
    assert augment(images, ()) is images
    assert augment(images, AUGMENT_KINDS, probability=0.0) is images
    assert blur(images, 0.0) is images
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", AUGMENT_KINDS)
def test_the_seed_decides_and_the_images_differ_in_what_is_drawn(images, kind):
    torch.manual_seed(1)
    first = augment(images[:1].expand_as(images), (kind,))
    torch.manual_seed(1)
    assert torch.equal(augment(images[:1].expand_as(images), (kind,)), first)
    assert len(first.unique(dim=0)) > 8


@pytest.mark.parametrize("kind", AUGMENT_KINDS)
def test_the_probability_is_the_share_of_distorted_images(images, kind):
    many = images[:1].expand(2000, -1, -1, -1)
    changed = (augment(many, (kind,), probability=0.3) != many).flatten(1).any(dim=1)
    # A shift of (0, 0) and a hole beyond the border change nothing: a few less than asked for.
    assert 0.24 < changed.float().mean() < 0.34


@pytest.mark.parametrize("kind", AUGMENT_KINDS)
def test_distortions_are_differentiable_in_the_images_twice(kind):
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def distort(x):
        torch.manual_seed(3)
        return augment(x, (kind,))

    assert torch.autograd.gradcheck(distort, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: distort(x) ** 2, (images,), fast_mode=True)


def test_translation_shifts_by_up_to_an_eighth_in_every_direction_and_fills_with_grey():
    # Each pixel knows its place, so a shift can be read off the picture.
    places = torch.arange(1.0, SIDE * SIDE + 1).view(1, 1, SIDE, SIDE).expand(400, 3, -1, -1)
    moved = augment(places, ("translation",))
    shifts = set()
    for picture in moved:
        middle = picture[0, SIDE // 2, SIDE // 2].int().item() - 1
        down, right = SIDE // 2 - middle // SIDE, SIDE // 2 - middle % SIDE
        expected = F.pad(places[0], (2, 2, 2, 2))[
            :, 2 - down : 2 - down + SIDE, 2 - right : 2 - right + SIDE
        ]
        assert torch.equal(picture, expected)
        shifts.add((down, right))
    assert shifts == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_color_moves_brightness_scales_saturation_and_contrast(images):
    recoloured = augment(images, ("color",))
    shift = recoloured.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert shift.abs().max() <= 0.5
    assert shift.min() < -0.4 < 0.4 < shift.max()

    def spread(x):  # of the grey values, which saturation leaves alone
        return x.mean(dim=1).flatten(1).std(dim=1)

    contrast = spread(recoloured) / spread(images)
    assert 0.5 <= contrast.min() < 0.6 < 1.4 < contrast.max() <= 1.5
    colour = [
        (x - x.mean(dim=1, keepdim=True)).flatten(1).norm(dim=1) for x in (recoloured, images)
    ]
    saturation = colour[0] / colour[1] / contrast
    assert saturation.min() < 0.2
    assert 1.8 < saturation.max() <= 2


def test_cutout_leaves_one_grey_box_that_may_stick_out():
    cut = augment(torch.ones(400, 3, 20, 20), ("cutout",), cutout=0.2)
    holes = (cut == 0).all(dim=1)
    assert torch.equal(cut, (~holes).float()[:, None].expand_as(cut))
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(holes.sum(dim=(1, 2)), heights * widths)  # a box
    assert heights.max() == widths.max() == 4
    assert heights.min() < 4  # sticks out
    assert holes.any(dim=0).all()  # every place is hit, the corners too


def test_kinds_are_applied_in_their_order(images):
    torch.manual_seed(0)
    grey_holes = augment(images, ("color", "cutout"), cutout=0.5)
    assert (grey_holes == 0).any(dim=3).any(dim=2).any(dim=1).float().mean() > 0.9
    torch.manual_seed(0)
    coloured_holes = augment(images, ("cutout", "color"), cutout=0.5)
    assert (coloured_holes == 0).float().mean() < 0.01


def test_half_precision_images_are_distorted_in_fp32(images):
    assert augment(images.bfloat16(), ("color",)).dtype == torch.float32
    assert blur(images.bfloat16(), 1.0).dtype == torch.float32
    assert augment(images.double(), ("color",)).dtype == torch.float64


def test_blur_has_the_stated_width_and_keeps_flat_colours():
    point = torch.zeros(1, 3, 64, 64)
    point[..., 32, 32] = 1
    profile = blur(point, 0.5)[0, 0, 32] / blur(point, 0.5)[0, 0, 32, 32]
    sigma = 0.5 * 32**0.5
    expected = torch.exp2(-((torch.arange(64.0) - 32) / sigma).square())
    torch.testing.assert_close(profile[24:41], expected[24:41])
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(blur(flat, 1.0), flat)


def test_blur_fades_to_nothing_and_fits_the_smallest_images(images):
    left = [(blur(images, s) - images).square().mean().item() for s in (1.0, 0.5, 0.2, 0.05)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert blur(torch.rand(1, 3, 2, 2), 1.0).isfinite().all()
