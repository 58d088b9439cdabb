from itertools import pairwise

import pytest
import torch

from varlit.errors import UserError
from varlit.generation.editing.edits import EditSettings
from varlit.generation.editing.outpainting import draw_around, place, windows
from varlit.generation.requests import Request
from varlit.generation.sampler import SamplingSettings

SETTINGS = SamplingSettings(cfg_scale=1.0, top_k=0, top_p=0.0)


def outpaint(sampler, images, canvas, corner=None, labels=None, seed=5, **fields):
    request = Request(sampler.tokenizer, seed, None, 4)
    placed = place(images, canvas, corner)
    return draw_around(sampler.var, request, placed, labels, SETTINGS, EditSettings(**fields))


def corners(is_new, side, overlap=0.5):
    return [(rows.start, columns.start) for rows, columns in windows(is_new, side, overlap)]


def test_a_picture_lies_where_it_is_put_and_the_rest_is_new():
    images = torch.rand(2, 3, 4, 6)
    placed = place(images, (8, 9))
    assert torch.equal(placed.images[..., 2:6, 1:7], images)
    assert placed.images.count_nonzero() == images.count_nonzero()
    assert (~placed.is_new).sum() == 24
    assert not place(images, (8, 9), corner=(4, 3)).is_new[4:, 3:].any()
    for corner in ((5, 0), (0, 4), (-1, 0)):
        with pytest.raises(UserError, match="does not lie inside a canvas of 9x8 px"):
            place(images, (8, 9), corner)


def test_a_square_in_the_middle_of_a_wide_canvas_takes_two_windows():
    is_new = place(torch.rand(1, 3, 16, 16), (16, 32)).is_new
    assert sorted(corners(is_new, 16)) == [(0, 0), (0, 16)]


def test_one_square_takes_one_window_wherever_the_picture_lies():
    for corner in ((0, 0), (4, 12), (7, 3)):
        assert corners(place(torch.rand(1, 3, 9, 4), (16, 16), corner).is_new, 16) == [(0, 0)]


@pytest.mark.parametrize("canvas", [(16, 71), (53, 16), (40, 40), (16, 17)])
@pytest.mark.parametrize("corner", [(0, 0), None])
def test_windows_cover_all_that_is_new_and_each_knows_something(canvas, corner):
    is_new = place(torch.rand(1, 3, 16, 16), canvas, corner).is_new
    left = is_new.clone()
    for rows, columns in windows(is_new, 16):
        part = left[rows, columns]
        assert part.shape == (16, 16)
        assert part.any()
        assert (~part).any()
        left[rows, columns] = False
    assert not left.any()


def test_windows_go_on_by_what_must_not_be_known():
    is_new = place(torch.rand(1, 3, 16, 16), (16, 80), (0, 0)).is_new
    for overlap, step in ((0.5, 8), (0.75, 4), (0.25, 12)):
        starts = [x for _, x in corners(is_new, 16, overlap)]
        assert {b - a for a, b in pairwise([0, *starts])} <= {step, (80 - 16) % step or step}


def test_a_canvas_that_holds_no_window_is_refused():
    with pytest.raises(UserError, match=r"canvas is 20x12 px.*draws 16x16 px.*such as 20x16"):
        next(windows(torch.ones(12, 20, dtype=torch.bool), 16))


@pytest.mark.parametrize("canvas", [(8, 8), (8, 16), (13, 9)])
def test_the_picture_keeps_its_pixels_on_any_canvas(sampler, canvas):
    images, corner = torch.rand(2, 3, 6, 5) * 2 - 1, (1, 2)
    drawn = outpaint(sampler, images, canvas, corner, variants=2, feather_px=0)
    assert drawn.shape == (4, 3, *canvas)
    assert torch.equal(drawn[..., 1:7, 2:7], images.repeat_interleave(2, 0))
    beyond = place(images, canvas, corner).is_new
    assert (drawn[0] != drawn[1])[:, beyond].any()
    soft = outpaint(sampler, images, canvas, corner, variants=2, feather_px=1)
    assert torch.equal(soft[..., 2:6, 3:6], images.repeat_interleave(2, 0)[..., 1:5, 1:4])


def test_a_canvas_is_the_same_among_others_and_windows_differ(sampler):
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    several = outpaint(sampler, images, (8, 16), labels=1, variants=3)
    torch.testing.assert_close(several[2:], outpaint(sampler, images, (8, 16), labels=1, seed=7))


def test_what_is_given_is_not_written_to(sampler):
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    placed = place(images, (8, 12), (0, 0))
    before = placed.images.clone(), placed.is_new.clone()
    request = Request(sampler.tokenizer, 1, None, 1)
    draw_around(sampler.var, request, placed, None, SETTINGS, EditSettings())
    assert torch.equal(placed.images, before[0])
    assert torch.equal(placed.is_new, before[1])


def test_no_window_is_drawn_from_the_numbers_of_another(sampler, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "varlit.generation.editing.outpainting.draw_edits",
        lambda _var, request, images, *_: seen.append(request.seed) or FakeDrawn(images),
    )
    outpaint(sampler, torch.zeros(1, 3, 8, 8), (8, 16), variants=2)
    assert len(seen) == 2
    assert len({seed for seeds in seen for seed in seeds}) == 4


class FakeDrawn:
    def __init__(self, images):
        self.images = images


@pytest.mark.parametrize("overlap", [0, 1, -0.5])
def test_an_impossible_overlap_is_refused(sampler, overlap):
    request = Request(sampler.tokenizer, 1, None, 1)
    placed = place(torch.zeros(1, 3, 8, 8), (8, 16))
    with pytest.raises(UserError, match="overlap must lie between 0 and 1"):
        draw_around(sampler.var, request, placed, None, SETTINGS, EditSettings(), overlap)


@pytest.mark.parametrize(
    ("canvas", "corner", "message"),
    [
        (64, None, r"canvas must be \(height, width\).*got 64"),
        ("16", None, "canvas must be"),
        ((8, 8, 8), None, "canvas must be"),
        ((32.0, 64.0), None, r"each number of canvas must be a whole number; got 32\.0"),
        ((10**7, 10**7), None, "may have 67,108,864 pixels.*got 10000000x10000000"),
        ((8, 16), (0, 1.5), r"each number of corner must be a whole number; got 1\.5"),
        ((8, 16), 3, r"corner must be \(y, x\)"),
        ((-8, 16), None, "does not lie inside"),
    ],
)
def test_what_is_no_canvas_or_no_corner_is_refused(canvas, corner, message):
    with pytest.raises(UserError, match=message):
        place(torch.zeros(1, 3, 8, 8), canvas, corner)


def test_a_canvas_may_be_a_list_or_the_shape_of_a_tensor():
    images = torch.zeros(1, 3, 8, 8)
    for canvas in ([8, 16], torch.zeros(8, 16).shape, (torch.tensor(8), 16)):
        assert place(images, canvas, [0, 8]).images.shape == (1, 3, 8, 16)


def test_a_seed_that_draws_one_canvas_twice_is_refused(sampler):
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UserError, match="seed 0 is given 2 times for label 3 of image 0"):
        outpaint(sampler, images[:1], (8, 16), seed=[0, 0], variants=2)
    assert len(outpaint(sampler, images, (8, 16), seed=[0, 0])) == 2
