import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.metrics import networks
from varlit.metrics.networks import FeatureNetwork, Features, open_network, register_network


def images(count: int = 3, side: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), generator=draw, dtype=torch.uint8)


class Answer(nn.Module):
    """Gives a fixed form of answer."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, images):
        flat = images.half().flatten(2).mean(2)
        return {
            "tensor": flat,
            "map": images.float(),
            "pair": (flat, flat[:, :2]),
            "dict": {"pool": flat, "logits": flat[:, :2], "spatial": flat[:, :1]},
            "features": Features(flat, None, flat[:, :2]),
            "text": "no features",
            "short": flat[:1],
            "vector": flat[:, 0],
        }[self.form]


@pytest.mark.parametrize(
    ("form", "dims"),
    [
        ("tensor", (3, None, None)),
        ("map", (3 * 32 * 32, None, None)),
        ("pair", (3, None, 2)),
        ("dict", (3, 1, 2)),
        ("features", (3, None, 2)),
    ],
)
def test_any_sensible_answer_of_a_module_is_understood(form, dims):
    network = FeatureNetwork(Answer(form), "answer")
    assert (network.feature_dim, network.spatial_dim, network.num_classes) == dims
    found = network(images(side=32))
    assert found.pool.dtype == torch.float32
    assert found.pool.shape == (3, dims[0])


@pytest.mark.parametrize("form", ["text", "short", "vector"])
def test_other_answers_are_refused_when_the_network_is_opened(form):
    with pytest.raises(UserError, match=r"one row an image.* for 2 images"):
        FeatureNetwork(Answer(form), "answer")


def test_only_uint8_images_are_looked_at(colours):
    network = FeatureNetwork(colours, "colours")
    with pytest.raises(UserError, match=r"uint8 images .* got float32"):
        network(images().float())
    with pytest.raises(UserError, match=r"got uint8 \(3, 8, 8\)"):
        network(images()[0])


def test_no_other_network_is_called_inception(colours):
    with pytest.raises(UserError, match="only Inception itself"):
        FeatureNetwork(colours, "inception")
    with pytest.raises(UserError, match="ships with varlit"):
        register_network("inception", lambda _: FeatureNetwork(colours, "colours"))
    with pytest.raises(UserError, match="letters, digits"):
        FeatureNetwork(colours, "Inception v3")


def test_the_hash_is_that_of_names_and_values(colours):
    first = FeatureNetwork(colours, "colours").hash
    again = FeatureNetwork(type(colours)(), "other").hash
    assert first == again
    with torch.no_grad():
        colours.pool[0, 0] += 1
    assert FeatureNetwork(colours, "colours").hash != first
    assert networks.module_hash(nn.BatchNorm2d(3)) != networks.module_hash(nn.BatchNorm2d(4))


def test_a_registered_network_is_opened_by_its_name_with_its_weights(colours, monkeypatch):
    monkeypatch.setattr(networks, "_REGISTERED", {})
    asked = []

    def build(weights: str | None) -> FeatureNetwork:
        asked.append(weights)
        return FeatureNetwork(colours, "colours")

    register_network("mine", build)
    assert open_network("mine", "weights.pth").name == "colours"
    assert asked == ["weights.pth"]
    with pytest.raises(UserError, match="inception, mine, mobilenet_v2, torchscript"):
        open_network("yours")


def test_the_protocol_names_the_network_and_its_resize(colours):
    told = FeatureNetwork(colours, "colours", weights_file="c.pth", resize="none").protocol()
    assert told["features"] == "colours"
    assert (told["weights_file"], told["resize"], told["feature_dim"]) == ("c.pth", "none", 6)
    assert len(told["weights_sha256"]) == 64


def test_it_is_frozen_and_in_no_module_tree(colours):
    holder = nn.Module()
    colours.train()
    holder.network = FeatureNetwork(colours, "colours")
    assert not colours.training
    assert not any(p.requires_grad for p in colours.parameters())
    assert holder.state_dict() == {}
    with torch.autocast("cpu", torch.bfloat16):
        inside = holder.network(images()).pool
    torch.testing.assert_close(inside, holder.network(images()).pool, rtol=0, atol=0)
