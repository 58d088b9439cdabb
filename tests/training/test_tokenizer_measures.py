import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.losses.perceptual import PerceptualLoss
from varlit.metrics.frechet import frechet_distance
from varlit.metrics.networks import FeatureNetwork, register_network
from varlit.metrics.reconstruction import psnr, to_uint8
from varlit.models.config import TokenizerConfig
from varlit.models.vqvae import VQVAE
from varlit.training.tokenizer_measures import TokenizerMeasures, TokenizerMeasuresConfig

CONFIG = TokenizerConfig(
    channels=32, channel_multipliers=(1, 1), num_res_blocks=1, codebook_size=16, scales=(1, 3, 6)
)
NO_GAN = {"disc_weight": 0.0}


class Pixels(nn.Module):
    def forward(self, images):
        features = images.flatten(1)[:, :5].float() / 255
        return features, features


class L1(PerceptualLoss):
    """Stands for LPIPS, and keeps what it was shown."""

    def __init__(self):
        self.net, self.seen = "vgg", []

    def __call__(self, reconstruction, images):
        self.seen.append((reconstruction, images))
        return (reconstruction - images).abs().flatten(1).mean(dim=1)


def measures(perceptual=None, **settings):
    return TokenizerMeasures(CONFIG, TokenizerMeasuresConfig(**settings), perceptual)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = VQVAE(CONFIG).eval()
    nn.init.normal_(network.quantizer.codebook.weight)
    return network


@pytest.fixture
def images():
    return torch.rand(12, 3, 12, 12) * 2 - 1


def pixel_network():
    return FeatureNetwork(Pixels(), "pixels")


def test_reconstructions_of_the_first_scales_are_measured_and_the_last_is_the_whole(
    network, images
):
    found = measures().measure(network, images, 0, 1)
    tokens = network.encode(images)
    for k, name in enumerate(("01x01", "03x03", "06x06")):
        expected = psnr(images, network.decode_prefix(tokens, k + 1)).mean()
        torch.testing.assert_close(found[f"psnr_by_scale/{name}"], expected)
    assert found["psnr_by_scale/06x06"] == found["psnr"]


@pytest.mark.parametrize(
    ("num_batches", "wanted", "expected"),
    [(8, 2, [0, 4]), (5, 2, [0, 3]), (3, 4, [0, 1, 2]), (7, 7, list(range(7))), (4, 0, [])],
)
def test_evenly_spread_batches_are_decoded_scale_by_scale(
    network, images, num_batches, wanted, expected
):
    taken = measures(scale_batches=wanted)
    found = [taken.measure(network, images[:1], i, num_batches) for i in range(num_batches)]
    due = [i for i, one in enumerate(found) if any("by_scale" in name for name in one)]
    assert due == expected


def test_the_perceptual_distance_is_of_what_a_file_would_hold(network, images):
    distance = L1()
    found = measures(distance).measure(network, images, 0, 1)
    ((reconstruction, original),) = distance.seen
    assert found["lpips"] > 0
    assert torch.equal(to_uint8(original), to_uint8(images))
    for shown in (reconstruction, original):
        torch.testing.assert_close((shown + 1) * 127.5, to_uint8(shown).float())


def test_rfid_counts_the_real_images_once_and_the_reconstructions_anew(network, images):
    taken = measures()
    taken.use_rfid(pixel_network())
    results = []
    for _ in range(2):
        taken.begin()
        for i, batch in enumerate(images.split(6)):
            taken.measure(network, batch, i, 12)
        results.append(taken.end())
    assert results[0] == results[1]
    assert results[0]["rfrechet_pixels"] > 0
    both = (images, network.reconstruct(images))
    expected = frechet_distance(*(Pixels()(to_uint8(side))[0] for side in both))
    assert results[0]["rfrechet_pixels"] == pytest.approx(expected, rel=1e-5)
    protocol = taken.protocol
    assert protocol["num_images"] == protocol["reference_images"] == len(images)
    assert protocol["is_quick"], "fewer images than published figures are of"


def test_only_inception_s_distance_is_called_rfid_and_few_images_are_told(
    network, images, monkeypatch
):
    said = []
    monkeypatch.setattr("varlit.training.tokenizer_measures.rank_zero_info", said.append)
    taken = measures()
    taken.use_rfid(FeatureNetwork(Pixels(), "inception", is_inception=True))
    for _ in range(2):
        taken.begin()
        taken.measure(network, images[:4], 0, 1)
        assert "rfid" in taken.end(), "the name that best-rfid goes by"
    (line,) = said
    assert "rFID by inception" in line
    assert "4 reconstructions against the very images; a quick look" in line
    assert "beware: 4 reference images for 5 features" in line


def test_a_network_that_fails_costs_a_warning_in_training_and_stops_a_test(network, images):
    class Fails(Pixels):
        calls = 0

        def forward(self, images):
            Fails.calls += 1
            if Fails.calls == fails_at:
                raise RuntimeError("out of order")
            return super().forward(images)

    fails_at = 0
    taken = measures()
    taken.use_rfid(FeatureNetwork(Fails(), "pixels"))
    for call in (2, 3):  # amid the first pass: nothing may stay of a half reference
        Fails.calls, fails_at = 0, call
        taken.begin()
        for batch in images.split(6):
            assert taken.measure(network, batch, 0, 1)["psnr"] > 0
        with pytest.warns(UserWarning, match=r"no rFID this time \(out of order\); training goes"):
            assert taken.end(may_fail=True).keys() == {"code_usage", "code_perplexity"}
        with pytest.raises(RuntimeError, match="out of order"):
            taken.end()
    fails_at = 0
    taken.begin()
    taken.measure(network, images, 0, 1)
    assert taken.end()["rfrechet_pixels"] > 0
    assert taken.protocol["reference_images"] == len(images)
    taken.begin()
    taken.rfid.update(images, images * torch.nan)
    with pytest.raises(UserError, match="hold NaN"):
        taken.rfid.compute()


def test_validation_measures_rfid_where_it_is_asked_for_and_says_what_is_missing(
    make_tokenizer_module, make_trainer, digits, monkeypatch
):
    trainer = make_trainer(limit_val_batches=4)
    asked = make_tokenizer_module(measures={"validate_rfid": True}, **NO_GAN)
    asked.measures.open_network = pixel_network
    (found,) = trainer.validate(asked, digits, verbose=False)
    assert found["val/rfrechet_pixels"] >= 0
    plain = make_tokenizer_module(**NO_GAN)
    plain.measures.open_network = pixel_network
    (found,) = trainer.validate(plain, digits, verbose=False)
    assert not any("rf" in name for name in found)

    def absent():
        raise UserError("no weights")

    without = make_tokenizer_module(measures={"validate_rfid": True}, **NO_GAN)
    without.measures.open_network = absent
    said = []
    monkeypatch.setattr("varlit.training.tokenizer_measures.rank_zero_info", said.append)
    (found,) = trainer.validate(without, digits, verbose=False)
    assert said == ["rFID is not measured: no weights"]
    assert found["val/psnr"] > 0
    assert not any("rf" in name for name in found), "the rest is measured all the same"


def test_rfid_takes_the_network_that_is_asked_for(network, images):
    class Means(nn.Module):  # no logits: rFID needs none
        def forward(self, pixels):
            return pixels.float().mean(dim=(2, 3))

    register_network("means", lambda weights: FeatureNetwork(Means(), "means"))
    taken = measures(network="means")
    taken.open_rfid(lambda open_one: open_one())
    taken.begin()
    taken.measure(network, images, 0, 1)
    assert taken.end()["rfrechet_means"] >= 0
    assert taken.protocol["features"] == "means"


@pytest.mark.parametrize("with_lpips", [True, False])
def test_the_worst_images_are_those_of_the_whole_set_whatever_the_batches(
    network, images, with_lpips
):
    reconstruction = network.reconstruct(images)
    badness = -psnr(images, reconstruction)
    if with_lpips:
        badness = (reconstruction - images).abs().flatten(1).mean(dim=1)
    expected = images[badness.argsort(descending=True)[:8]]
    for size in (12, 5, 1):
        taken = measures(L1() if with_lpips else None)
        taken.begin()
        for i, batch in enumerate(images.split(size)):
            taken.measure(network, batch, i, 12)
        assert taken.worst.badness.diff().max() <= 0
        assert torch.equal(taken.worst.images, expected)
        taken.begin()
        assert taken.worst is None


def test_a_negative_number_of_batches_is_refused():
    with pytest.raises(UserError, match="scale_batches"):
        TokenizerMeasuresConfig(scale_batches=-1)
