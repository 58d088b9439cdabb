import pytest
import torch

from varlit.generation.packed import PackedSampler, open_stepwise
from varlit.generation.random_numbers import ImageSeeds
from varlit.generation.recorded.compiled import open_sampler
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.models.packed_linear import PackedLinear, has_packed_product

LABELS = torch.tensor([0, 2, 1])
SETTINGS = SamplingSettings(cfg_scale=2.0, top_k=9, top_p=0.9)
pytestmark = pytest.mark.skipif(
    not has_packed_product(), reason="this machine has no packed product"
)


@pytest.fixture(autouse=True)
def at_any_width(monkeypatch):
    monkeypatch.setattr("varlit.models.packed_linear.MIN_WIDTH", 1)


@pytest.fixture
def packed(sampler):
    return PackedSampler(sampler.var, sampler.tokenizer)


def seeds():
    return ImageSeeds((3, 4, 5))


def test_packed_weights_draw_the_pictures_of_the_plain_ones(sampler, packed):
    for settings in (SETTINGS, SamplingSettings(cfg_scale=0.0, draw="sorted")):
        plain = sampler.draw(LABELS, settings, seeds(), with_frames=True)
        ours = packed.draw(LABELS, settings, seeds(), with_frames=True)
        assert torch.equal(ours.tokens, plain.tokens)
        for ours_frame, plain_frame in zip(ours.frames, plain.frames, strict=True):
            torch.testing.assert_close(ours_frame, plain_frame)
    assert isinstance(packed._packed.var.head, PackedLinear)


def test_an_image_is_the_same_in_any_batch(packed):
    whole = packed.draw(LABELS, SETTINGS, seeds()).tokens
    for i, seed in enumerate((3, 4, 5)):
        alone = packed.draw(LABELS[i : i + 1], SETTINGS, ImageSeeds((seed,))).tokens
        assert torch.equal(alone, whole[i : i + 1])


def test_under_autocast_it_is_the_plain_sampler_bit_for_bit(sampler, packed):
    with torch.autocast("cpu", torch.bfloat16):
        assert not packed.is_packed
        plain = sampler.draw(LABELS, SETTINGS, seeds())
        ours = packed.draw(LABELS, SETTINGS, seeds())
    assert torch.equal(ours.tokens, plain.tokens)
    assert torch.equal(ours.images, plain.images)


def test_it_is_opened_unless_told_otherwise(sampler):
    networks = sampler.var, sampler.tokenizer
    assert isinstance(open_sampler(*networks), PackedSampler)
    assert isinstance(open_stepwise(*networks), PackedSampler)
    assert type(open_sampler(*networks, fast=False)) is Sampler
    assert type(open_stepwise(*networks, torch.bfloat16)) is Sampler
