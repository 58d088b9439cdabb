import pytest
import torch

from varlit.losses import tokenizer as room
from varlit.losses.augment import augment, blur
from varlit.losses.tokenizer import TokenizerLoss, TokenizerLossConfig
from varlit.models.config import TokenizerConfig
from varlit.models.vqvae import VQVAE, TokenizerOutput


class StubPerceptual:
    """Stands for LPIPS without its weights: twice the mean square of each pair."""

    def __init__(self, net, weights_file):
        self.built_with = (net, weights_file)

    def __call__(self, reconstruction, images):
        return 2 * (reconstruction - images).square().flatten(1).mean(dim=1)


@pytest.fixture(autouse=True)
def stub_perceptual(monkeypatch):
    monkeypatch.setattr(room, "PerceptualLoss", StubPerceptual)


def output_of(reconstruction):
    return TokenizerOutput(
        reconstruction=reconstruction,
        tokens=torch.zeros(len(reconstruction), 5, dtype=torch.int64),
        codebook_loss=torch.tensor([1.0, 3.0]),
        commitment_loss=torch.tensor([2.0, 6.0]),
        searched=torch.zeros(len(reconstruction), 5, 2),
    )


def pixel_config(**fields):
    return TokenizerLossConfig(**({"perceptual_weight": 0.0, "disc_weight": 0.0} | fields))


def test_terms_are_the_weighted_sum_that_the_config_asks_for():
    images = torch.zeros(2, 3, 8, 8)
    loss = TokenizerLoss(
        TokenizerLossConfig(l1_weight=0.2, l2_weight=3.0, perceptual_weight=0.5, disc_weight=0.0)
    )
    terms = loss.reconstruction_terms(output_of(images + 0.5), images)
    found = [terms.l1, terms.l2, terms.perceptual, terms.codebook, terms.commitment]
    assert torch.stack(found).tolist() == pytest.approx([0.5, 0.25, 0.5, 2.0, 4.0])
    assert terms.reconstruction.item() == pytest.approx(0.2 * 0.5 + 3 * 0.25 + 0.5 * 0.5)
    assert terms.total.item() == pytest.approx(terms.reconstruction.item() + 2 + 0.25 * 4)


def test_nothing_of_the_perceptual_network_reaches_the_module_tree():
    loss = TokenizerLoss(TokenizerLossConfig(perceptual_weights="trunk.pth"))
    assert loss.perceptual.built_with == ("vgg", "trunk.pth")
    assert list(loss.parameters()) == []
    assert set(loss.state_dict()) == {"lecam.mean_real", "lecam.mean_fake", "lecam.gathered"}


def test_weight_0_builds_neither_perceptual_network_nor_lecam():
    loss = TokenizerLoss(pixel_config())
    assert loss.perceptual is None
    assert loss.lecam is None
    assert loss.state_dict() == {}
    terms = loss.reconstruction_terms(output_of(torch.ones(1, 3, 8, 8)), torch.zeros(1, 3, 8, 8))
    assert terms.perceptual.item() == 0
    assert not loss.disc_active(1.0)
    assert loss.disc_strength(1.0) == 0


def test_terms_are_fp32_under_autocast_and_carry_gradients():
    images = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    reconstruction = torch.full_like(images, 0.1, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = TokenizerLoss(pixel_config()).reconstruction_terms(
            output_of(reconstruction), images
        )
    assert terms.total.dtype == torch.float32
    terms.total.backward()
    assert reconstruction.grad.abs().sum() > 0


def test_the_adversary_starts_late_and_warms_up_linearly():
    loss = TokenizerLoss(pixel_config(disc_weight=0.4, disc_start=0.2, disc_warmup=0.1))
    strengths = [loss.disc_strength(progress) for progress in (0, 0.199, 0.2, 0.25, 0.3, 1.0)]
    assert strengths == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert [loss.disc_active(progress) for progress in (0.199, 0.2)] == [False, True]
    assert loss.generator_weight(0.25, torch.tensor(3.0)).item() == pytest.approx(0.4 * 0.5 * 3)
    abrupt = TokenizerLoss(pixel_config(disc_weight=0.4, disc_start=0.0, disc_warmup=0.0))
    assert abrupt.disc_strength(0.0) == 1


def test_balance_is_1_where_it_is_switched_off():
    loss = TokenizerLoss(pixel_config(disc_weight=0.4, adaptive_weight=False))
    layer = torch.nn.Parameter(torch.ones(2))
    drawn, ones = layer * 1, torch.ones(2)
    assert loss.balance(drawn, 7 * ones, ones, layer).item() == 1
    adaptive = TokenizerLoss(pixel_config(disc_weight=0.4))
    balance = adaptive.balance(drawn, 7 * ones, ones, layer)
    assert balance.item() == pytest.approx(7, rel=1e-4)


def test_lecam_is_added_from_the_second_step_on():
    loss = TokenizerLoss(pixel_config(disc_weight=0.4, lecam_weight=0.5))
    real, fake = torch.tensor([2.0]), torch.tensor([-2.0])
    assert loss.discriminator_term(real, fake).item() == 0  # hinge is satisfied, no average yet
    loss.lecam.update(real, fake)
    expected = 0.5 * (4.0**2 + 4.0**2)
    assert loss.discriminator_term(real, fake).item() == pytest.approx(expected)


def test_the_form_of_the_game_is_the_config_s():
    fake = torch.tensor([0.0])
    hinge = TokenizerLoss(pixel_config(disc_weight=1.0))
    smooth = TokenizerLoss(pixel_config(disc_weight=1.0, disc_loss="nonsaturating"))
    assert hinge.generator_term(fake).item() == 0
    assert smooth.generator_term(fake).item() == pytest.approx(0.6931, abs=1e-4)
    assert smooth.discriminator_term(fake, fake).item() == pytest.approx(2 * 0.6931, abs=1e-4)


def test_the_feature_error_is_the_mean_over_scales_or_the_last_one():
    images = torch.zeros(1, 3, 8, 8)
    every = TokenizerLoss(pixel_config()).reconstruction_terms(output_of(images), images)
    last = TokenizerLoss(pixel_config(feature_error="last_scale"))
    terms = last.reconstruction_terms(output_of(images), images)
    assert [every.codebook.item(), every.commitment.item()] == [2, 4]
    assert [terms.codebook.item(), terms.commitment.item()] == [3, 6]


def test_with_weights_1_the_last_error_has_the_gradients_of_the_paper_s_feature_term():
    config = {"channels": 32, "channel_multipliers": (1, 1), "scales": (1, 4)}
    torch.manual_seed(0)
    quantizer = VQVAE(TokenizerConfig(codebook_size=8, codebook_dim=4, **config)).quantizer
    f = torch.randn(2, 4, 4, 4, requires_grad=True)
    quantized = quantizer(f)
    halves = quantized.codebook_loss[-1] + quantized.commitment_loss[-1]
    found = torch.autograd.grad(halves, (f, quantizer.codebook.weight))
    whole = f.detach().requires_grad_()
    f_hat = quantizer.decode(quantized.tokens)
    expected = torch.autograd.grad(
        (whole - f_hat).square().mean(), (whole, quantizer.codebook.weight)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_blur_starts_with_the_discriminator_and_fades_linearly():
    loss = TokenizerLoss(pixel_config(disc_weight=1.0, disc_start=0.2, disc_blur_fade=0.4))
    found = [loss.disc_blur(progress) for progress in (0.2, 0.3, 0.5, 0.6, 1.0)]
    assert found == pytest.approx([1, 0.75, 0.25, 0, 0])
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loss.disc_view(images, 0.3), blur(images, loss.disc_blur(0.3)))
    assert loss.disc_view(images, 0.6) is images


def test_the_discriminator_is_shown_the_images_as_they_are_by_default():
    loss, images = TokenizerLoss(pixel_config(disc_weight=1.0)), torch.rand(2, 3, 16, 16)
    before = torch.get_rng_state()
    assert loss.disc_view(images, 0.5) is images
    assert loss.disc_penalties(refuse, images, torch.zeros(2), 0.5, step=15) == {}
    assert torch.equal(torch.get_rng_state(), before)


def refuse(images):
    raise AssertionError("a penalty that is off asked the discriminator")


def test_disc_augment_distorts_what_is_shown():
    images = torch.rand(2, 3, 16, 16)
    loss = TokenizerLoss(pixel_config(disc_weight=1.0, disc_augment=("color", "cutout")))
    torch.manual_seed(5)
    shown = loss.disc_view(images, 0.5)
    torch.manual_seed(5)
    assert torch.equal(shown, augment(images, ("color", "cutout")))


def test_r1_is_due_in_one_step_of_n_weighs_n_times_and_sees_real_images_only():
    loss = TokenizerLoss(pixel_config(disc_weight=1.0, r1_weight=3.0, r1_every_n_steps=4))
    weight, seen = torch.randn(3, 8, 8, requires_grad=True), []

    def judge(images):
        seen.append(images.detach())
        return (images * weight).sum(dim=(1, 2, 3))

    pair, logits = torch.rand(4, 3, 8, 8), torch.zeros(4)
    due = [step for step in range(12) if loss.disc_penalties(judge, pair, logits, 0.5, step)]
    assert due == [3, 7, 11]
    assert all(torch.equal(images, pair[:2]) for images in seen)
    penalty = loss.disc_penalties(judge, pair, logits, 0.5, step=3)["r1"]
    torch.testing.assert_close(penalty, 3.0 / 2 * 4 * weight.square().sum())


def test_consistency_compares_with_the_logits_of_another_distortion():
    loss = TokenizerLoss(pixel_config(disc_weight=1.0, consistency_weight=8.0))
    pair = torch.rand(4, 3, 8, 8)
    blind = loss.disc_penalties(lambda x: x.new_ones(4, 5), pair, torch.zeros(4, 5), 0.5, step=0)
    assert {name: term.item() for name, term in blind.items()} == {"consistency": 8.0}
    scale = torch.ones(1, requires_grad=True)

    def judge(images):
        return images.mean(dim=(1, 2, 3)) * scale

    seeing = loss.disc_penalties(judge, pair, judge(pair), 0.5, step=0)["consistency"]
    seeing.backward()
    assert scale.grad.item() > 0
