"""Identities of the residual pyramid: VAR Algorithms 1 and 2 and what training adds to them."""

import pytest
import torch
from torch.nn import functional

from varlit.models.config import TokenizerConfig
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.ops.pyramid import enlarge, shrink, to_map, to_sequence
from varlit.ops.quantize import assignment_entropy, nearest_code

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
    f, residuals, search = latents(quantizer), [], quantizer.search_codes

    def watched(residual, k):
        residuals.append(residual.clone())
        return search(residual, k)

    monkeypatch.setattr(quantizer, "search_codes", watched)
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
            unit = left / left.norm(dim=-1, keepdim=True)
            cost = -unit @ (codebook / codebook.norm(dim=-1, keepdim=True)).T
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


# Sides of the token maps for images of 256, 512 and 1024 px, their tokens, and which of four
# shared phis serves each: the tables of the official code.
OFFICIAL_LISTS = [
    (TokenizerConfig.scales, 680, "0011122333"),
    ((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 2240, "0011122333"),
    ((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), 9451, "00011112222333"),
]


@pytest.mark.parametrize(("sides", "num_tokens", "shared"), OFFICIAL_LISTS)
def test_official_lists_have_the_official_phis_shared_single_and_one_per_scale(
    sides, num_tokens, shared
):
    num_scales = len(sides)
    expected = {4: tuple(map(int, shared)), 1: (0,) * num_scales, 0: tuple(range(num_scales))}
    for num_phi, index in expected.items():
        with torch.device("meta"):
            quantizer = MultiScaleQuantizer(TokenizerConfig(scales=sides, num_phi=num_phi))
        assert quantizer.scales.num_tokens == num_tokens
        assert quantizer.phi_index == index
        count = sum(parameter.numel() for parameter in quantizer.parameters())
        assert count == 4096 * 32 + (num_phi or num_scales) * (32 * 32 * 9 + 32)


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


@each_kind
def test_what_was_searched_finds_the_tokens(settings):
    quantizer = make(**settings)
    f = latents(quantizer)
    out = quantizer(f.requires_grad_())
    assert out.searched.shape == (*out.tokens.shape, DIM)
    assert not out.searched.requires_grad
    found = nearest_code(out.searched.flatten(0, 1), quantizer.codebook.weight, quantizer.search)
    assert torch.equal(found.view_as(out.tokens), out.tokens)
    first = to_sequence(shrink(f, quantizer.scales.sides[0]))
    assert torch.equal(out.searched[:, : first.shape[1]], first)


def test_keeping_all_scales_is_no_dropout():
    quantizer = make()
    f = latents(quantizer).requires_grad_()
    plain, kept = quantizer(f), quantizer(f, torch.full((3,), 4))
    assert torch.equal(kept.f_hat, plain.f_hat)
    torch.testing.assert_close(kept.codebook_loss, plain.codebook_loss)
    torch.testing.assert_close(kept.commitment_loss, plain.commitment_loss)


def test_dropout_cuts_the_image_of_decoding_but_neither_tokens_nor_what_was_searched():
    quantizer = make()
    f = latents(quantizer, 4)
    num_scales = torch.tensor([1, 4, 2, 3])
    plain, cut = quantizer(f), quantizer(f, num_scales)
    assert torch.equal(cut.tokens, plain.tokens)
    assert torch.equal(cut.searched, plain.searched)
    for i, n in enumerate(num_scales.tolist()):
        decoded = quantizer.decode(plain.tokens[i : i + 1], n)
        torch.testing.assert_close(cut.f_hat[i : i + 1], decoded, atol=1e-5, rtol=0)


def test_under_dropout_the_mean_loss_is_over_images_of_the_mean_over_their_own_scales():
    quantizer = make()
    f = latents(quantizer, 4)
    num_scales = [1, 4, 2, 3]
    out = quantizer(f, torch.tensor(num_scales))
    own = [quantizer(f[i : i + 1]).codebook_loss[:n].mean() for i, n in enumerate(num_scales)]
    expected = torch.stack(own).mean()
    torch.testing.assert_close(out.codebook_loss.mean(), expected)
    torch.testing.assert_close(out.commitment_loss.mean(), expected)
    assert (out.codebook_loss > 0).all()


def test_codes_of_dropped_scales_get_no_loss_and_their_phi_a_gradient_of_zero():
    quantizer = make(num_phi=0)
    out = quantizer(latents(quantizer), torch.full((3,), 2))
    assert (out.codebook_loss[2:] == 0).all()
    out.codebook_loss.sum().backward()
    kept = out.tokens[:, : quantizer.scales.offsets[2]].unique()
    moved = quantizer.codebook.weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert set(moved.tolist()) == set(kept.tolist())
    # Zero and not None, or DDP would wait for it.
    assert [bool(phi.weight.grad.any()) for phi in quantizer.phis] == [True, True, False, False]


def test_frozen_codes_get_no_gradient_and_phi_still_learns():
    quantizer = make()
    quantizer.codebook.requires_grad_(False)
    quantizer(latents(quantizer)).codebook_loss.sum().backward()
    assert quantizer.codebook.weight.grad is None
    assert all(phi.weight.grad.any() for phi in quantizer.phis)


@each_kind
def test_the_entropy_term_moves_features_and_codes_and_changes_nothing_else(settings):
    quantizer = make(**settings)
    f = latents(quantizer).requires_grad_()
    plain, asked = quantizer(f), quantizer(f, entropy_temperature=0.5)
    assert plain.entropy_loss is None
    for name in ("f_hat", "tokens", "codebook_loss", "commitment_loss", "searched"):
        assert torch.equal(getattr(plain, name), getattr(asked, name)), name
    vectors, codes = plain.searched.flatten(0, 1), quantizer.codebook.weight
    expected = assignment_entropy(vectors, codes, 0.5, quantizer.search)
    torch.testing.assert_close(asked.entropy_loss, expected)
    asked.entropy_loss.backward()
    assert f.grad.any()
    assert codes.grad.any()
    assert all(phi.weight.grad is None for phi in quantizer.phis)


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
