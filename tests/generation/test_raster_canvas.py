import pytest
import torch

from varlit.generation.canvas import open_canvas
from varlit.generation.editing.known import known_outside, known_scales
from varlit.generation.raster_canvas import RasterCanvas
from varlit.generation.sampler import ImageSeeds, Sampler, SamplingSettings
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.filtering import guide

SIDE, NUM_TOKENS = 4, 16
LABELS = torch.tensor([0, 1, 2, 1])
GUIDED = SamplingSettings(cfg_scale=2.0, top_k=12, top_p=0.9)
TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=24,
    codebook_dim=8,
    scales=(SIDE,),
)


@pytest.fixture
def raster():
    """A sampler in raster order with loud weights."""
    tokenizer = VQVAE(TOKENIZER).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    config = VARConfig(depth=2, width=32, num_heads=4, order="raster")
    var = VAR(config, TOKENIZER, num_classes=3).eval()
    for parameter in var.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Sampler(var, tokenizer)


def test_a_canvas_walks_the_cells_as_teacher_forcing_does(raster):
    quantizer, tokens = raster.tokenizer.quantizer, torch.randint(24, (3, NUM_TOKENS))
    canvas = open_canvas(raster.var, raster.tokenizer, 3)
    assert isinstance(canvas, RasterCanvas)
    assert canvas.next_input() is None
    inputs = []
    for k in range(NUM_TOKENS):
        canvas.put(tokens[:, k : k + 1])
        inputs.append(canvas.next_input().clone())
    assert torch.equal(torch.cat(inputs[:-1], 1), quantizer.teacher_inputs(tokens, "raster"))
    assert torch.equal(canvas.features, quantizer.decode(tokens))


def test_what_is_not_drawn_yet_is_zero_and_what_was_seen_stays(raster):
    quantizer = raster.tokenizer.quantizer
    canvas = RasterCanvas(quantizer, 1)
    for token in (3, 4, 5, 6):
        canvas.put(torch.tensor([[token]]))
    seen, copy = canvas.features, canvas.features.clone()
    codes = torch.zeros(1, 8, SIDE, SIDE)
    codes[0, :, 0] = quantizer.codebook(torch.tensor([3, 4, 5, 6])).T
    torch.testing.assert_close(seen, quantizer.accumulate(quantizer.empty(1), codes, 0))
    canvas.put(torch.tensor([[7]]))
    assert torch.equal(seen, copy)


def test_codes_in_place_of_tokens_lie_alike(raster):
    quantizer, tokens = raster.tokenizer.quantizer, torch.randint(24, (2, NUM_TOKENS))
    by_token, by_code = RasterCanvas(quantizer, 2), RasterCanvas(quantizer, 2)
    for token in tokens.split(1, dim=1):
        by_token.put(token)
        by_code.put(torch.zeros_like(token), quantizer.codebook(token))
    assert torch.equal(by_token.features, by_code.features)


@pytest.mark.parametrize("guidance", ["var", "constant"])
@torch.no_grad()
def test_greedy_tokens_are_the_likeliest_ones_of_the_full_pass(raster, guidance):
    settings = SamplingSettings(cfg_scale=2.0, top_k=1, top_p=0.0, guidance=guidance)
    tokens = raster.draw(LABELS, settings).tokens
    assert tokens.shape == (4, NUM_TOKENS)
    inputs = raster.tokenizer.teacher_inputs(tokens, "raster")
    conditional = raster.var(LABELS, inputs)
    unconditional = raster.var(torch.full_like(LABELS, 3), inputs)
    rising = 2.0 * torch.arange(NUM_TOKENS) / (NUM_TOKENS - 1)
    weight = rising if guidance == "var" else torch.ones(NUM_TOKENS)
    logits = guide(conditional, unconditional, weight[None, :, None])
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    assert (chosen >= logits.amax(-1) - 1e-3).all()


def test_a_picture_grows_by_rows_and_ends_as_its_tokens_decode(raster):
    drawn = raster.draw(LABELS, GUIDED, ImageSeeds(range(4)), with_frames=True)
    assert len(drawn.frames) == SIDE
    torch.testing.assert_close(drawn.images, raster.tokenizer.decode(drawn.tokens))
    assert torch.equal(drawn.images, drawn.frames[-1])
    plain = raster.draw(LABELS, GUIDED, ImageSeeds(range(4)))
    assert torch.equal(plain.tokens, drawn.tokens), "looking does not change the picture"


def test_an_image_is_the_same_in_every_batch(raster):
    whole = raster.draw(LABELS, GUIDED, ImageSeeds(range(4)))
    alone = raster.draw(LABELS[2:3], GUIDED, ImageSeeds([2]))
    assert torch.equal(whole.tokens[2:3], alone.tokens)


def test_blended_codes_make_pictures_too(raster):
    settings = SamplingSettings(cfg_scale=2.0, top_k=12, top_p=0.9, more_smooth=True)
    drawn = raster.draw(LABELS, settings, ImageSeeds(range(4)))
    assert torch.isfinite(drawn.images).all()


def test_known_cells_stay_and_the_others_are_drawn(raster):
    images, mask = torch.rand(4, 3, 8, 8) * 2 - 1, torch.zeros(SIDE, SIDE)
    mask[2:] = 1
    known = known_outside(raster.tokenizer, images, mask, refit_known=True)
    assert known.is_known.sum() == 4 * NUM_TOKENS / 2
    drawn = raster.draw(LABELS, GUIDED, ImageSeeds(range(4)), known=known)
    true = raster.tokenizer.encode(images)
    assert torch.equal(drawn.tokens[:, :8], true[:, :8])
    assert (drawn.tokens[:, 8:] != true[:, 8:]).any()


def test_the_first_tokens_of_a_scan_can_be_given(raster):
    tokens = torch.randint(24, (4, NUM_TOKENS))
    known = known_scales(tokens, raster.var.steps, 5)
    drawn = raster.draw(LABELS, GUIDED, ImageSeeds(range(4)), known=known)
    assert torch.equal(drawn.tokens[:, :5], tokens[:, :5])
    assert (drawn.tokens[:, 5:] != tokens[:, 5:]).any()
