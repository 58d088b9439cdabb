import copy

import pytest
import torch

from varlit.models.discriminator_config import DiscriminatorConfig
from varlit.models.discriminator_dino import MEAN, STD, DinoDiscriminator

timm = pytest.importorskip("timm")
TRUNK = "test_vit"  # timm's tiny one: 160 px, six blocks of width 64


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(timm.create_model(TRUNK).state_dict(), path)  # with a classifier, as a real file
    return path


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("VARLIT_DINO", raising=False)


@pytest.fixture
def network(trunk_file):
    torch.manual_seed(0)
    config = DiscriminatorConfig(kind="dino", trunk=TRUNK, weights=str(trunk_file))
    return DinoDiscriminator(config)


@pytest.fixture
def seen(network, monkeypatch):
    """What the trunk was shown, pass by pass."""
    shown, maps = [], network.trunk.token_maps
    monkeypatch.setattr(
        network.trunk, "token_maps", lambda x, blocks: shown.append(x) or maps(x, blocks)
    )
    return shown


def test_the_trunk_is_in_no_state_and_never_trains(network):
    assert not [name for name in network.state_dict() if not name.startswith("heads.")]
    trunk = network.trunk._network
    network.train().requires_grad_(True)
    assert not any(module.training for module in trunk.modules())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    owned = {id(parameter) for parameter in network.parameters()}
    assert not owned & {id(parameter) for parameter in trunk.parameters()}


def test_the_trunk_moves_along_and_a_copy_has_one_of_its_own(network):
    twin = copy.deepcopy(network)
    network.to(torch.float64)
    assert {p.dtype for p in network.trunk._network.parameters()} == {torch.float64}
    assert {p.dtype for p in twin.trunk._network.parameters()} == {torch.float32}
    assert network.to("meta").trunk._network.pos_embed.is_meta


def test_a_head_for_the_tokens_before_the_blocks_and_for_each_tapped_one(network):
    assert network.tapped_blocks == (2, 5)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3 * 100)
    with torch.device("meta"):  # shapes only, nothing is read
        official = DinoDiscriminator(DiscriminatorConfig(kind="dino"))
    assert official.tapped_blocks == (2, 5, 8, 11)
    # vaex states 7.39 M trained parameters for its five heads over 384 channels.
    assert sum(p.numel() for p in official.parameters()) == pytest.approx(7.39e6, rel=1e-3)


def test_eval_shows_the_whole_image_and_training_a_crop_half_the_time(network, seen):
    images = torch.rand(1, 3, 320, 320) * 2 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    whole = (torch.nn.functional.avg_pool2d(images, 2) / 2 + 0.5 - mean) / std
    for _ in range(3):
        network.eval()(images)
        torch.testing.assert_close(seen[-1], whole)
    windows = (images / 2 + 0.5 - mean) / std
    corners = windows.unfold(2, 160, 1).unfold(3, 160, 1)[0, :, :, :, 0, 0]  # (3, 161, 161)
    seen.clear()
    network.train()
    torch.manual_seed(0)
    for _ in range(20):
        network(images)
    crops = [x for x in seen if not torch.allclose(x, whole)]
    assert 5 <= len(crops) <= 15
    places = [torch.isclose(corners, x[0, :, 0, 0, None, None]).all(dim=0).nonzero() for x in crops]
    for x, place in zip(crops, places, strict=True):
        top, left = place[0].tolist()
        torch.testing.assert_close(x, windows[..., top : top + 160, left : left + 160])
    assert len({tuple(place[0].tolist()) for place in places}) == len(crops)


def test_smaller_images_are_enlarged_and_equal_ones_left_alone(network, seen):
    flat = torch.zeros(1, 3, 32, 32)
    network(flat)
    expected = (0.5 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(seen[-1], expected.view(1, 3, 1, 1).expand(1, 3, 160, 160))
