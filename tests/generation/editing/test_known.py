import pytest
import torch

from varlit.errors import UserError
from varlit.generation.editing.known import (
    KnownTokens,
    check_images,
    known_at_scales,
    known_outside,
    known_scales,
    latent_mask,
    pixel_mask,
)
from varlit.generation.sampler import ImageSeeds, SamplingSettings
from varlit.ops.scales import Scales

LABELS = torch.tensor([0, 2])
FREE = SamplingSettings(cfg_scale=0.0, top_k=0, top_p=0.0)
EVERYTHING = torch.ones(4, 4)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8) * 2 - 1


def edit(sampler, images, mask, settings=FREE, seeds=(5, 6)):
    known = known_outside(sampler.tokenizer, images, mask)
    return sampler.draw(LABELS, settings, ImageSeeds(seeds), known=known), known


def test_nothing_masked_gives_the_reconstruction(sampler, images):
    drawn, _ = edit(sampler, images, torch.zeros(8, 8))
    assert torch.equal(drawn.images, sampler.tokenizer.reconstruct(images))


def test_only_the_1x1_map_is_known_when_everything_is_masked(sampler, images):
    drawn, known = edit(sampler, images, EVERYTHING)
    assert known.is_known.sum(dim=1).tolist() == [1, 1]
    assert torch.equal(drawn.tokens[:, :1], sampler.tokenizer.encode(images)[:, :1])


@pytest.mark.parametrize("more_smooth", [False, True])
def test_known_tokens_are_kept_and_the_others_are_drawn(sampler, images, more_smooth):
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    settings = SamplingSettings(cfg_scale=2.0, top_k=0, top_p=0.0, more_smooth=more_smooth)
    drawn, known = edit(sampler, images, mask, settings)
    own = sampler.tokenizer.encode(images)
    assert torch.equal(drawn.tokens[known.is_known], own[known.is_known])
    assert (drawn.tokens != own)[~known.is_known].any()
    finest = known.is_known[:, -16:].unflatten(1, (4, 4))
    assert finest[:, :, :2].all()
    assert not finest[:, :, 2:].any()


def test_a_known_scale_leaves_the_coarser_random_numbers_where_they_were(sampler):
    plain = sampler.draw(LABELS, FREE, ImageSeeds([1, 2]))
    known = known_scales(plain.tokens, sampler.var.scales, 2)
    assert torch.equal(
        sampler.draw(LABELS, FREE, ImageSeeds([1, 2]), known=known).tokens, plain.tokens
    )
    other = sampler.draw(LABELS, FREE, ImageSeeds([3, 4]), known=known).tokens
    assert torch.equal(other[:, :5], plain.tokens[:, :5])
    assert not torch.equal(other[:, 5:], plain.tokens[:, 5:])


def test_a_pixel_mask_touches_every_cell_that_it_touches(sampler):
    mask = torch.zeros(8, 8)
    mask[0, 7] = 1
    cells = latent_mask(mask, 1, sampler.tokenizer)
    assert cells.nonzero().tolist() == [[0, 0, 3]]


def test_a_mask_of_cells_is_taken_as_it_is_and_may_differ_between_images(sampler):
    masks = torch.rand(2, 4, 4) > 0.5
    assert torch.equal(latent_mask(masks, 2, sampler.tokenizer), masks)


def test_what_is_known_follows_the_resized_map():
    known = torch.zeros(1, 4, 4, dtype=torch.bool)
    known[:, :, :3] = True
    by_scale = Scales((1, 2, 4)).split(known_at_scales(known, Scales((1, 2, 4))))
    assert by_scale[1].tolist() == [[True, False, True, False]], "a half is not enough"
    assert torch.equal(by_scale[2].unflatten(1, (4, 4)), known)


@pytest.mark.parametrize("shape", [(7, 8), (8,), (3, 8, 8), (1, 1, 8, 8)])
def test_a_mask_of_another_size_is_refused(sampler, shape):
    with pytest.raises(UserError, match=r"mask must be 8x8 px or 4x4 cells.*got shape"):
        latent_mask(torch.zeros(shape), 2, sampler.tokenizer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_mask_of_what_is_no_number_is_refused(sampler, value):
    mask = torch.zeros(8, 8)
    mask[3, 3] = value
    with pytest.raises(UserError, match="mask must be bool or numbers in"):
        latent_mask(mask, 2, sampler.tokenizer)


def test_known_tokens_of_another_shape_are_refused():
    with pytest.raises(UserError, match="must have one shape"):
        KnownTokens(torch.zeros(1, 21, dtype=torch.long), torch.zeros(1, 20, dtype=torch.bool))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([torch.zeros(3, 4, 4)], "got a list"),
        (torch.zeros(3, 4, 4), r"B at least 1; got \[3, 4, 4\]"),
        (torch.zeros(0, 3, 4, 4), "B at least 1"),
        (torch.zeros(1, 1, 4, 4), r"got \[1, 1, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "127.5 - 1"),
        (torch.full((1, 3, 4, 4), 255.0), "127.5 - 1"),
        (torch.full((1, 3, 4, 4), float("nan")), "floats in -1..1"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(UserError, match=message):
        check_images(images)
    check_images(torch.full((1, 3, 4, 4), 1.1))  # bicubic resizing overshoots


def test_a_mask_that_is_no_tensor_is_refused(sampler):
    with pytest.raises(UserError, match=r"got a list.*torch\.as_tensor"):
        latent_mask([[True]], 1, sampler.tokenizer)


def test_images_are_encoded_some_at_a_time(sampler, monkeypatch):
    tokenizer, sizes = sampler.tokenizer, []
    side = tokenizer.config.image_size
    images, mask = torch.rand(5, 3, side, side) * 2 - 1, torch.zeros(side, side)
    whole = known_outside(tokenizer, images, mask, batch_size=5)
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda part: sizes.append(len(part)) or encode(part))
    parts = known_outside(tokenizer, images, mask, batch_size=2)
    assert sizes == [2, 2, 1]
    assert torch.equal(parts.tokens, whole.tokens)


def test_a_free_first_scale_is_drawn_too_unless_everything_is_known(sampler, images):
    scales = sampler.var.scales
    known = torch.ones(2, 4, 4, dtype=torch.bool)
    known[1, 0, 0] = False
    free = known_at_scales(known, scales, free_first_scale=True)
    assert free[:, 0].tolist() == [True, False]
    assert torch.equal(free[:, 1:], known_at_scales(known, scales)[:, 1:]), "it alone changes"
    all_new = known_outside(sampler.tokenizer, images, EVERYTHING, free_first_scale=True)
    assert not all_new.is_known.any()


def test_what_is_hidden_changes_no_token(sampler, images):
    mask = torch.zeros(8, 8)
    mask[2:5, 3:7] = 1
    other = torch.where(mask.bool(), torch.rand(2, 3, 8, 8), images)
    seen = [known_outside(sampler.tokenizer, x, mask).tokens for x in (images, other)]
    assert not torch.equal(*seen), "without hiding what is masked is remembered"
    hidden = [known_outside(sampler.tokenizer, x, mask, hide_masked=True) for x in (images, other)]
    assert torch.equal(hidden[0].tokens, hidden[1].tokens)
    assert torch.equal(hidden[0].is_known, known_outside(sampler.tokenizer, images, mask).is_known)


def test_cells_as_a_mask_are_their_pixels(sampler):
    cells = torch.zeros(4, 4, dtype=torch.bool)
    cells[1, 2] = True
    pixels = pixel_mask(cells, 2, sampler.tokenizer)
    assert pixels.shape == (2, 8, 8)
    assert pixels[1].nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert torch.equal(latent_mask(pixels, 2, sampler.tokenizer)[0], cells)
    assert torch.equal(pixel_mask(pixels, 2, sampler.tokenizer), pixels)


def test_refitted_tokens_bring_the_known_part_back_to_the_picture(sampler, images):
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    tokenizer, target = sampler.tokenizer, sampler.tokenizer.features(images)

    def gap(seed, **fields):
        known = known_outside(tokenizer, images, mask, free_first_scale=True, **fields)
        drawn = sampler.draw(LABELS, FREE, ImageSeeds([seed, seed + 1]), known=known)
        features = tokenizer.quantizer.decode(drawn.tokens)
        return (features - target)[..., :2].square().mean().item()

    plain, refitted = (
        sum(gap(seed, refit_known=refit) for seed in range(8)) for refit in (False, True)
    )
    assert refitted < plain


def test_refitted_tokens_are_the_pictures_own_where_nothing_else_was_drawn(sampler, images):
    nothing = torch.zeros(8, 8)
    known = known_outside(sampler.tokenizer, images, nothing, refit_known=True)
    drawn = sampler.draw(LABELS, FREE, ImageSeeds([1, 2]), known=known)
    assert torch.equal(drawn.tokens, sampler.tokenizer.encode(images))


def test_rows_of_known_tokens_are_those_of_their_images(sampler, images):
    known = known_outside(sampler.tokenizer, images, torch.ones(8, 8), refit_known=True)
    twice = known.rows(torch.tensor([1, 1]))
    assert torch.equal(twice.features, known.features[[1, 1]])
    assert torch.equal(twice.tokens, known.tokens[[1, 1]])
    assert len(known.rows(slice(1)).is_known) == 1
