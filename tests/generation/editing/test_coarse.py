import pytest
import torch

from varlit.errors import UserError
from varlit.generation.editing.coarse import check_keep_scales, known_coarse
from varlit.generation.random_numbers import ImageSeeds
from varlit.generation.sampler import SamplingSettings

LABELS = torch.tensor([0, 2])
SETTINGS = SamplingSettings(cfg_scale=1.5, top_k=0, top_p=0.0)
LENGTHS = (1, 5)  # tokens of the first one and two of the scales 1, 2, 4


def draw(sampler, seeds, known=None, settings=SETTINGS):
    return sampler.draw(LABELS, settings, ImageSeeds(seeds), with_frames=True, known=known)


@pytest.mark.parametrize("keep_scales", [1, 2])
def test_the_coarse_maps_are_kept_and_the_rest_is_drawn(sampler, keep_scales):
    given = torch.randint(24, (2, 21))
    num_kept = LENGTHS[keep_scales - 1]
    known = known_coarse(sampler.var, given, keep_scales, 2)
    one, other = draw(sampler, [1, 2], known), draw(sampler, [3, 4], known)
    for drawn in (one, other):
        assert torch.equal(drawn.tokens[:, :num_kept], given[:, :num_kept])
    assert not torch.equal(one.tokens[:, num_kept:], other.tokens[:, num_kept:])
    frame = sampler.tokenizer.decode_prefix(given, keep_scales)
    torch.testing.assert_close(one.frames[keep_scales - 1], frame)


@pytest.mark.parametrize("smooth", [False, True])
def test_started_from_its_own_maps_a_seed_draws_the_same_picture(sampler, smooth):
    settings = SamplingSettings(1.5, 0, 0.0, more_smooth=smooth)
    if smooth:
        # Blends, unlike tokens, are not what is kept: here the identity is of the random numbers.
        settings = SamplingSettings(1.5, top_k=1, top_p=0.0, more_smooth=True)
    plain = draw(sampler, [1, 2], settings=settings)
    for keep_scales in (1, 2):
        known = known_coarse(sampler.var, plain.tokens, keep_scales, 2)
        assert torch.equal(draw(sampler, [1, 2], known, settings).tokens, plain.tokens)


def test_the_finest_maps_that_are_not_kept_have_no_say(sampler):
    given = torch.randint(24, (2, 21))
    other = given.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 24
    known = [known_coarse(sampler.var, tokens, 2, 2) for tokens in (given, other)]
    assert torch.equal(
        draw(sampler, [1, 2], known[0]).tokens, draw(sampler, [1, 2], known[1]).tokens
    )


def test_the_drawn_scales_are_those_of_one_teacher_forced_pass(sampler):
    """Greedy drawing must name the likeliest code by the plain forward pass over what it drew."""
    given = torch.randint(24, (2, 21))
    greedy = SamplingSettings(cfg_scale=0, top_k=1, top_p=0.0)
    drawn = draw(sampler, [1, 2], known_coarse(sampler.var, given, 1, 2), greedy)
    with torch.no_grad():
        logits = sampler.var(LABELS, sampler.tokenizer.teacher_inputs(drawn.tokens))
    assert torch.equal(logits.argmax(-1)[:, 1:], drawn.tokens[:, 1:])


@pytest.mark.parametrize("shape", [(21,), (1, 21)])
def test_one_pyramid_serves_all_images(sampler, shape):
    given = torch.randint(24, shape)
    known = known_coarse(sampler.var, given, 2, 2)
    assert known.tokens.shape == known.is_known.shape == (2, 21)
    each = known_coarse(sampler.var, given.reshape(1, 21).repeat(2, 1), 2, 2)
    assert torch.equal(draw(sampler, [1, 2], known).tokens, draw(sampler, [1, 2], each).tokens)


def test_nothing_given_is_nothing_known(sampler):
    assert known_coarse(sampler.var, None, 0, 2) is None
    with pytest.raises(UserError, match="give both"):
        known_coarse(sampler.var, None, 2, 2)


@pytest.mark.parametrize("keep_scales", [0, 3, -1, 1.0, True, None])
def test_a_number_of_scales_that_leaves_nothing_is_refused(sampler, keep_scales):
    with pytest.raises(UserError, match=r"keep_scales must lie in 1\.\.2 .*scales are 1, 2, 4"):
        check_keep_scales(sampler.var, keep_scales)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 20, dtype=torch.long), r"\(1, 21\) for all images, or \(2, 21\)"),
        (torch.zeros(3, 21, dtype=torch.long), r"got \[3, 21\]"),
        (torch.zeros(1, 1, 21, dtype=torch.long), r"got \[1, 1, 21\]"),
        (torch.zeros(2, 21), r"got torch\.float32"),
        ([[0] * 21], "got list"),
        (torch.full((2, 21), 24), r"0\.\.23.*got 24\.\.24"),
        (torch.full((2, 21), -1), r"got -1\.\.-1"),
    ],
)
def test_what_is_no_pyramid_is_refused(sampler, tokens, message):
    with pytest.raises(UserError, match=message):
        known_coarse(sampler.var, tokens, 2, 2)
