import pytest
import torch

from varlit.errors import UserError


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8) * 2 - 1


def test_images_become_tokens_and_images_again(make_tokenizer, images):
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode(images)
    assert (tokens.shape, tokens.dtype) == ((3, 21), torch.int64)
    assert 0 <= tokens.min() <= tokens.max() < 24
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1
    assert torch.equal(tokenizer.reconstruct(images), decoded)
    assert torch.equal(tokenizer.decode_prefix(tokens, 3), decoded)
    assert not torch.equal(tokenizer.decode_prefix(tokens, 2), decoded)


def test_a_prefix_does_not_look_at_finer_scales(make_tokenizer):
    tokenizer = make_tokenizer()
    tokens = torch.randint(24, (2, 21))
    other = torch.cat((tokens[:, :5], torch.randint(24, (2, 16))), dim=1)
    assert torch.equal(tokenizer.decode_prefix(tokens, 2), tokenizer.decode_prefix(other, 2))


def test_training_sees_what_encoding_and_decoding_make(make_tokenizer, images):
    tokenizer = make_tokenizer()
    output = tokenizer(images)
    tokens = tokenizer.encode(images)
    assert torch.equal(output.tokens, tokens)
    assert output.codebook_loss.shape == output.commitment_loss.shape == (3,)
    clamped = output.reconstruction.clamp(-1, 1)
    torch.testing.assert_close(clamped, tokenizer.decode(tokens), atol=1e-4, rtol=0)


def test_the_same_tokens_whatever_the_precision_around(make_tokenizer, images):
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), tokens)
        rough = tokenizer.features(images)
        assert tokenizer.decode(tokens).dtype == torch.float32
    assert not torch.equal(rough, tokenizer.features(images)), "the encoder itself does differ"
    assert torch.equal(tokenizer.encode(images.double()), tokens)


def test_gradients_reach_every_weight(make_tokenizer, images):
    tokenizer = make_tokenizer()
    output = tokenizer(images)
    loss = (output.reconstruction - images).square().mean()
    (loss + output.codebook_loss.sum() + output.commitment_loss.sum()).backward()
    trained = {n: p for n, p in tokenizer.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []


def test_tokens_and_pictures_carry_no_graph(make_tokenizer, images):
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode(images)
    assert not tokenizer.decode(tokens).requires_grad
    assert not tokenizer.teacher_inputs(tokens).requires_grad


def test_the_last_layer_is_that_of_the_decoder(make_tokenizer, images):
    tokenizer = make_tokenizer()
    before = tokenizer.decode(tokenizer.encode(images))
    with torch.no_grad():
        tokenizer.last_layer.zero_()
    after = tokenizer.decode(tokenizer.encode(images))
    assert before.std(dim=(2, 3)).max() > 0
    torch.testing.assert_close(after.std(dim=(2, 3)), torch.zeros(3, 3))


@pytest.mark.parametrize("size", [(16, 16), (8, 16), (7, 7)])
def test_images_of_another_size_are_refused(make_tokenizer, size):
    with pytest.raises(UserError, match=f"takes 8x8 px images; got {size[1]}x{size[0]}"):
        make_tokenizer().encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_what_is_no_batch_of_images_is_refused(make_tokenizer, images):
    with pytest.raises(UserError, match=r"must be floats \(B, 3, H, W\)"):
        make_tokenizer().encode(images)


def test_half_precision_would_find_other_tokens_and_is_refused(make_tokenizer, images):
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode(images)
    tokenizer.bfloat16()
    for call in (lambda: tokenizer.encode(images), lambda: tokenizer.decode(tokens)):
        with pytest.raises(UserError, match=r"must stay in float32.*\.float\(\)"):
            call()


@pytest.mark.parametrize("num_scales", [0, 4, -1])
def test_a_number_of_scales_that_is_not_there_is_refused(make_tokenizer, num_scales):
    with pytest.raises(UserError, match=rf"in 1\.\.3; got {num_scales}"):
        make_tokenizer().decode_prefix(torch.zeros(1, 21, dtype=torch.long), num_scales)


@pytest.mark.parametrize(
    "tokens",
    [torch.full((1, 21), 24), torch.full((1, 21), -1), torch.zeros(21), torch.zeros(1, 21)],
)
def test_what_is_no_pyramid_of_codes_is_refused(make_tokenizer, tokens):
    with pytest.raises(UserError, match=r"integers \(B, L\) in 0\.\.23"):
        make_tokenizer().decode(tokens)


@pytest.mark.parametrize(
    ("num_phi", "used"), [(1, {0}), (2, {0, 1}), (0, {0, 1, 2}), (4, {0, 2, 3})]
)
def test_a_phi_that_no_scale_uses_is_not_trained(make_tokenizer, num_phi, used):
    quantizer = make_tokenizer(num_phi=num_phi).quantizer
    assert set(quantizer.phi_index) == used
    trained = {i for i, phi in enumerate(quantizer.phis) if phi.weight.requires_grad}
    assert trained == used, "DDP would wait for the gradient of another"


def test_training_options_reach_the_quantizer(make_tokenizer, images):
    tokenizer = make_tokenizer()
    plain = tokenizer(images)
    assert plain.entropy_loss is None
    cut = tokenizer(images, torch.tensor([3, 1, 2]), entropy_temperature=1.0)
    assert torch.equal(cut.tokens, plain.tokens)
    assert torch.equal(cut.searched, plain.searched)
    assert cut.entropy_loss.requires_grad
    for i, n in enumerate((3, 1, 2)):
        decoded = tokenizer.decode_prefix(plain.tokens[i : i + 1], n)
        found = cut.reconstruction[i : i + 1].clamp(-1, 1)
        torch.testing.assert_close(found, decoded, atol=1e-4, rtol=0)
