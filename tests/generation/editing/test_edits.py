import pytest
import torch

from varlit.errors import UserError
from varlit.generation.editing.edits import EditSettings, class_of_each, draw_edits
from varlit.generation.requests import Request
from varlit.generation.sampler import SamplingSettings
from varlit.models.vqvae import VQVAE
from varlit.ops.blending import feather

SETTINGS = SamplingSettings(cfg_scale=1.0, top_k=0, top_p=0.0)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8) * 2 - 1


@pytest.fixture
def half():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    return mask


def edit(sampler, images, mask, labels=None, seed=5, batch_size=4, **fields):
    request = Request(sampler.tokenizer, seed, None, batch_size)
    return draw_edits(sampler.var, request, images, mask, labels, SETTINGS, EditSettings(**fields))


def test_variants_lie_image_by_image_and_count_the_seeds_on(sampler, images, half):
    several = edit(sampler, images, half, [0, 2], variants=3)
    assert several.images.shape == (6, 3, 8, 8)
    for row, (image, label) in enumerate([(0, 0), (0, 0), (0, 0), (1, 2), (1, 2), (1, 2)]):
        alone = edit(sampler, images[image : image + 1], half, [label], seed=5 + row)
        assert torch.equal(several.tokens[row], alone.tokens[0])
    assert len({tuple(row.tolist()) for row in several.tokens}) == 6


def test_variants_are_the_same_in_any_batch(sampler, images, half):
    one = edit(sampler, images, half, variants=2, batch_size=1)
    assert torch.equal(one.tokens, edit(sampler, images, half, variants=2, batch_size=3).tokens)


@pytest.mark.parametrize("feather_px", [0, 1, None])
def test_known_pixels_come_back_bit_for_bit_beyond_the_feather(sampler, images, half, feather_px):
    plain = edit(sampler, images, half, variants=2)
    kept = edit(sampler, images, half, variants=2, keep_known_pixels=True, feather_px=feather_px)
    cell_px = sampler.tokenizer.config.stride
    width = cell_px // 2 if feather_px is None else feather_px
    untouched = (feather(half[None], width) == 0).expand(4, 3, 8, 8)
    own = images.repeat_interleave(2, 0)
    assert torch.equal(kept.images[untouched], own[untouched])
    assert torch.equal(kept.images[..., 4:], plain.images[..., 4:]), "the mask is all drawn"
    assert torch.equal(kept.tokens, plain.tokens)
    assert not torch.equal(plain.images[untouched], own[untouched]), "else a reconstruction"


def test_a_mask_of_cells_keeps_the_pixels_of_the_others(sampler, images):
    cells = torch.zeros(2, 4, 4, dtype=torch.bool)
    cells[0, 0, 0] = True
    kept = edit(sampler, images, cells, keep_known_pixels=True, feather_px=0).images
    assert torch.equal(kept[1], images[1])
    assert torch.equal(kept[0, :, 2:], images[0, :, 2:])
    assert not torch.equal(kept[0, :, :2, :2], images[0, :, :2, :2])


def test_one_label_serves_all_images_and_a_list_names_each(sampler, images, half):
    one, each = (edit(sampler, images, half, labels).tokens for labels in (2, [2, 2]))
    assert torch.equal(one, each)
    assert class_of_each(None, 3, 7).tolist() == [7, 7, 7]
    assert class_of_each(torch.tensor(1), 2, 7).tolist() == [1, 1]
    with pytest.raises(UserError, match="a label for each of 2 images"):
        class_of_each([0], 2, 7)


def test_another_class_moves_more_with_the_first_scale_free(sampler, images):
    everything = torch.ones(8, 8)
    kept = edit(sampler, images, everything, 1).tokens
    free = edit(sampler, images, everything, 1, free_first_scale=True).tokens
    own = sampler.tokenizer.encode(images)
    assert torch.equal(kept[:, 0], own[:, 0])
    drawn = [
        edit(sampler, images, everything, 1, seed=s, free_first_scale=True).tokens[:, 0]
        for s in range(4)
    ]
    assert len({tuple(first.tolist()) for first in [free[:, 0], *drawn]}) > 1


def test_the_images_given_are_left_as_they_were(sampler, images, half):
    before = images.clone()
    edit(sampler, images, half, keep_known_pixels=True, hide_masked=True)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": 0}, "variants must be a whole number from 1 on; got 0"),
        ({"variants": 2.0}, "variants must be a whole number"),
        ({"feather_px": -1}, "feather_px must be 0"),
        ({"feather_px": 1.5}, "feather_px must be 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        EditSettings(**fields)


def test_a_seed_that_draws_one_picture_twice_is_refused(sampler, images, half):
    with pytest.raises(UserError, match="seed 0 is given 2 times for label 3 of image 0"):
        edit(sampler, images[:1], half, seed=[0, 0], variants=2)
    # The same seed for another image, or another label of it, draws another picture.
    assert len(edit(sampler, images, half, [1, 1], seed=[0, 0]).images) == 2
    assert len(edit(sampler, images, half, seed=[0, 1, 0, 1], variants=2).images) == 4


def test_an_empty_mask_is_said(sampler, images):
    with pytest.warns(UserWarning, match="the mask is empty, so nothing is drawn anew"):
        edit(sampler, images, torch.zeros(8, 8))


@pytest.mark.parametrize("num_images", [1, 4])
def test_too_little_memory_to_encode_names_a_batch_that_fits(
    sampler, half, monkeypatch, num_images
):
    encode = VQVAE.encode

    def too_small_a_card(self, images):
        if len(images) > num_images // 2:
            raise torch.OutOfMemoryError
        return encode(self, images)

    monkeypatch.setattr(VQVAE, "encode", too_small_a_card)
    four = torch.zeros(num_images, 3, 8, 8)
    for mask in (half, half.expand(num_images, 8, 8)):
        told = "batch_size 2 was tried and fits" if num_images == 4 else "even with one image"
        with pytest.raises(UserError, match=f"out of GPU memory.*{told}"):
            edit(sampler, four, mask, batch_size=num_images)


@pytest.mark.parametrize("batch_size", [1.5, 0, "2", True])
def test_a_batch_size_that_is_no_number_of_images_is_refused(sampler, images, half, batch_size):
    with pytest.raises(UserError, match="batch_size must be"):
        edit(sampler, images, half, batch_size=batch_size)


def test_a_picture_of_another_size_or_ratio_is_refused(sampler):
    with pytest.raises(UserError, match="takes 8x8 px images; got 16x8"):
        edit(sampler, torch.zeros(1, 3, 8, 16), torch.ones(8, 8))
