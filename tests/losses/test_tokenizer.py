import warnings

import pytest
import torch

from varlit.errors import UserError
from varlit.losses import tokenizer as room
from varlit.losses.tokenizer import TokenizerLoss, TokenizerLossConfig
from varlit.models.vqvae import TokenizerOutput


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
    assert loss.balance(layer.sum() * 7, layer.sum(), layer).item() == 1
    adaptive = TokenizerLoss(pixel_config(disc_weight=0.4))
    balance = adaptive.balance(layer.sum() * 7, layer.sum(), layer)
    assert balance.item() == pytest.approx(7, rel=1e-4)


def test_lecam_is_added_from_the_second_step_and_rests_in_eval_mode():
    config = pixel_config(disc_weight=0.4, lecam_weight=0.5)
    loss = TokenizerLoss(config)
    real, fake = torch.tensor([2.0]), torch.tensor([-2.0])
    assert loss.discriminator_term(real, fake).item() == 0  # hinge is satisfied, no average yet
    expected = 0.5 * (4.0**2 + 4.0**2)
    assert loss.eval().discriminator_term(real, fake).item() == pytest.approx(expected)
    gathered = loss.lecam.gathered.clone()
    loss.discriminator_term(real * 0, fake * 0)
    assert torch.equal(loss.lecam.gathered, gathered)


def test_the_form_of_the_game_is_the_config_s():
    fake = torch.tensor([0.0])
    hinge = TokenizerLoss(pixel_config(disc_weight=1.0))
    smooth = TokenizerLoss(pixel_config(disc_weight=1.0, disc_loss="nonsaturating"))
    assert hinge.generator_term(fake).item() == 0
    assert smooth.generator_term(fake).item() == pytest.approx(0.6931, abs=1e-4)
    assert smooth.discriminator_term(fake, fake).item() == pytest.approx(2 * 0.6931, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l1_weight": -1.0}, "l1_weight must not be negative"),
        ({"l2_weight": float("nan")}, "l2_weight"),
        ({"disc_start": 250_001.0}, "share of training"),
        ({"adaptive_min": 2.0, "adaptive_max": 1.0}, "above adaptive_max"),
        ({"lecam_decay": 1.0}, "below 1"),
    ],
)
def test_a_setting_without_sense_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TokenizerLossConfig(**fields)


def test_an_ignored_weights_file_warns_and_the_defaults_do_not():
    with pytest.warns(UserWarning, match="perceptual_weights is ignored"):
        TokenizerLossConfig(perceptual_weight=0.0, perceptual_weights="trunk.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TokenizerLossConfig()


def test_the_config_travels_as_plain_data():
    config = TokenizerLossConfig(disc_loss="nonsaturating", l1_weight=0.7)
    assert TokenizerLossConfig.of(config.to_dict()) == config
