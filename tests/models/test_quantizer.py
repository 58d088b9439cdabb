"""Identities of the residual pyramid: VAR Algorithms 1 and 2 and what training adds to them."""

import pytest
import torch
from torch.nn import functional

from varlit.models.config import TokenizerConfig
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.ops.pyramid import enlarge, shrink, to_map, to_sequence

DIM, NUM_CODES = 6, 20
SETTINGS = [
    {},
    {"num_phi": 1},
    {"num_phi": 0},
    {"num_phi": 2, "phi_ratio": 0.8},
    {"search": "cosine"},
    {"scales": (2, 3, 6)},
]
each_kind = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def make(**settings):
    fields = {"codebook_size": NUM_CODES, "codebook_dim": DIM, "scales": (1, 2, 3, 5)} | settings
    quantizer = MultiScaleQuantizer(TokenizerConfig(**fields))
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


def latents(quantizer, batch_size=3):
    side = quantizer.scales.final_side
    return torch.randn(batch_size, DIM, side, side)


@each_kind
def test_at_each_scale_residual_and_image_so_far_add_up_to_the_latent_map(settings, monkeypatch):
    quantizer = make(**settings)
    f, residuals, search = latents(quantizer), [], quantizer._search

    def watched(residual, k):
        residuals.append(residual.clone())
        return search(residual, k)

    monkeypatch.setattr(quantizer, "_search", watched)
    tokens = quantizer.encode(f)
    assert len(residuals) == quantizer.scales.num_scales
    for k, residual in enumerate(residuals):
        torch.testing.assert_close(
            residual + quantizer.decode(tokens, k), f, atol=1e-5, rtol=0, msg=f"scale {k}"
        )


@each_kind
def test_each_token_is_the_best_code_of_what_is_left(settings):
    quantizer = make(**settings)
    f = latents(quantizer)
    tokens = quantizer.encode(f)
    codebook = quantizer.codebook.weight
    for k, part in enumerate(quantizer.scales.split(tokens)):
        left = to_sequence(shrink(f - quantizer.decode(tokens, k), quantizer.scales.sides[k]))
        if quantizer.search == "cosine":
            cost = -torch.cosine_similarity(left[:, :, None], codebook, dim=-1)
        else:
            cost = (left[:, :, None] - codebook).square().sum(-1)  # (B, l_k, V)
        chosen = cost.gather(-1, part[..., None])[..., 0]
        assert (chosen <= cost.amin(-1) + 1e-4).all(), "best up to rounding"


@each_kind
def test_decoding_is_accumulating_and_its_whole_prefix_is_all(settings):
    quantizer = make(**settings)
    num_scales = quantizer.scales.num_scales
    tokens = torch.randint(NUM_CODES, (2, quantizer.scales.num_tokens))
    f_hat = quantizer.empty(2)
    assert torch.equal(quantizer.decode(tokens, 0), f_hat)
    for k, part in enumerate(quantizer.scales.split(tokens)):
        f_hat = quantizer.accumulate(f_hat, quantizer.embed(part, k), k)
        assert torch.equal(quantizer.decode(tokens, k + 1), f_hat)
    assert torch.equal(quantizer.decode(tokens), quantizer.decode(tokens, num_scales))


@each_kind
def test_teacher_inputs_are_the_next_inputs_of_a_walk_by_hand(settings):
    quantizer = make(**settings)
    scales = quantizer.scales
    tokens = torch.randint(NUM_CODES, (2, scales.num_tokens))
    inputs = quantizer.teacher_inputs(tokens)
    assert inputs.shape == (2, scales.num_tokens - scales.lengths[0], DIM)
    f_hat = quantizer.empty(2)
    for k, part in enumerate(scales.split(tokens)[:-1]):
        f_hat = quantizer.accumulate(f_hat, quantizer.embed(part, k), k)
        start = scales.offsets[k + 1] - scales.lengths[0]
        walked = inputs[:, start : start + scales.lengths[k + 1]]
        assert torch.equal(walked, quantizer.next_input(f_hat, k))
        assert torch.equal(to_map(walked, scales.sides[k + 1]), shrink(f_hat, scales.sides[k + 1]))


def test_the_input_of_a_scale_knows_coarser_tokens_only():
    quantizer = make()
    scales = quantizer.scales
    tokens = torch.randint(NUM_CODES, (1, scales.num_tokens))
    before = quantizer.teacher_inputs(tokens)
    for k in range(scales.num_scales):
        changed = tokens.clone()
        changed[:, scales.token_slice(k)] = (changed[:, scales.token_slice(k)] + 1) % NUM_CODES
        after = quantizer.teacher_inputs(changed)
        boundary = scales.offsets[k] + scales.lengths[k] - scales.lengths[0]
        assert torch.equal(after[:, :boundary], before[:, :boundary])
        if k + 1 < scales.num_scales:
            assert not torch.equal(after[:, boundary:], before[:, boundary:])


def test_phi_blends_a_map_with_the_convolution_that_its_scale_shares():
    quantizer = make(num_phi=2, phi_ratio=0.25)
    assert quantizer.phi_index == (0, 0, 1, 1)
    embedding = torch.randn(1, DIM, 3, 3)
    h = enlarge(embedding, 5)
    expected = 0.75 * h + 0.25 * quantizer.phis[1](h)
    torch.testing.assert_close(quantizer.accumulate(quantizer.empty(1), embedding, 2), expected)


def test_a_schedule_of_one_scale_without_phi_is_plain_vector_quantization():
    quantizer = make(scales=(5,), phi_ratio=0.0)
    f = latents(quantizer)
    tokens = quantizer.encode(f)
    distance = torch.cdist(to_sequence(f).double(), quantizer.codebook.weight.double())
    assert torch.equal(tokens, distance.argmin(dim=-1))
    codes = quantizer.codebook.weight[tokens].transpose(1, 2).unflatten(2, (5, 5))
    torch.testing.assert_close(quantizer.decode(tokens), codes)
    assert quantizer.teacher_inputs(tokens).shape == (3, 0, DIM)
    with torch.no_grad():
        error = functional.mse_loss(codes, f)
        torch.testing.assert_close(quantizer(f).codebook_loss, error[None])


@each_kind
def test_training_finds_the_tokens_of_encoding_and_the_image_of_decoding(settings):
    quantizer = make(**settings)
    f = latents(quantizer)
    out = quantizer(f)
    assert torch.equal(out.tokens, quantizer.encode(f))
    torch.testing.assert_close(out.f_hat, quantizer.decode(out.tokens), atol=1e-5, rtol=0)


def test_the_gradient_passes_straight_through():
    quantizer = make()
    f = latents(quantizer).requires_grad_()
    seed = torch.randn_like(f)
    (quantizer(f).f_hat * seed).sum().backward()
    assert torch.equal(f.grad, seed)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_losses_are_mean_squared_errors_of_every_partial_sum():
    quantizer = make()
    f = latents(quantizer)
    out = quantizer(f)
    for k in range(quantizer.scales.num_scales):
        error = (quantizer.decode(out.tokens, k + 1) - f).square().mean()
        torch.testing.assert_close(out.codebook_loss[k], error, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(out.commitment_loss[k], error, atol=1e-6, rtol=1e-5)


def test_the_codebook_loss_moves_codes_and_phi_alone_the_commitment_loss_features_alone():
    quantizer = make()
    f = latents(quantizer).requires_grad_()
    out = quantizer(f)
    out.codebook_loss.sum().backward(retain_graph=True)
    assert f.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())
    unused = torch.ones(NUM_CODES, dtype=torch.bool)
    unused[out.tokens.unique()] = False
    assert (quantizer.codebook.weight.grad[unused] == 0).all()
    quantizer.zero_grad(set_to_none=True)
    out.commitment_loss.sum().backward()
    pulled = sum(f - quantizer.decode(out.tokens, k + 1) for k in range(4)).detach()
    torch.testing.assert_close(f.grad, 2 * pulled / f.numel(), atol=1e-7, rtol=1e-4)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_precision_around_it_changes_nothing():
    quantizer = make()
    f = latents(quantizer)
    plain, tokens = quantizer(f), quantizer.encode(f)
    decoded = quantizer.decode(tokens)
    part = quantizer.embed(tokens[:, :1], 0)
    walked = quantizer.accumulate(quantizer.empty(3), part, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(f), tokens)
        assert torch.equal(quantizer(f).codebook_loss, plain.codebook_loss)
        assert torch.equal(quantizer.decode(tokens), decoded)
        # The sampler walks the scales itself, under the trainer's autocast.
        assert torch.equal(quantizer.accumulate(quantizer.empty(3), part, 0), walked)


def test_encoding_leaves_its_input_untouched():
    quantizer = make()
    f = latents(quantizer)
    before = f.clone()
    quantizer.encode(f)
    quantizer(f)
    assert torch.equal(f, before)


def test_an_image_is_encoded_the_same_in_any_batch():
    quantizer = make()
    f = latents(quantizer, 5)
    assert torch.equal(quantizer.encode(f[3:4]), quantizer.encode(f)[3:4])


def test_codes_start_within_the_bound_of_vaex():
    quantizer = MultiScaleQuantizer(TokenizerConfig(codebook_size=4096, codebook_dim=16))
    bound = 16**-0.5 / 36
    weight = quantizer.codebook.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
