import os
from pathlib import Path

import pytest
import torch
from torchvision import models

from varlit.errors import UserError
from varlit.losses.perceptual import MINIMUM_SIDE_PX, PerceptualLoss, load_trunk

# Real weights are too big for the repository: named by the variable, or in a folder beside it.
REAL_TRUNK = Path(
    os.environ.get("VARLIT_LPIPS_SQUEEZE")
    or Path(__file__).parents[3] / "shared/data/weights/squeezenet1_1_features.pth"
)


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeeze.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def perceptual(trunk_file):
    return PerceptualLoss("squeeze", str(trunk_file))


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv("VARLIT_LPIPS_SQUEEZE", raising=False)


def test_equal_images_are_at_distance_0_and_others_above(perceptual):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert perceptual(images, images).tolist() == [0, 0]
    assert (perceptual(images, -images) > 0).all()


def test_the_whole_trunk_comes_from_the_file(perceptual, trunk_file):
    saved = torch.load(trunk_file, weights_only=True)
    loaded = perceptual._network.net.state_dict()
    assert len(loaded) == sum(name.startswith("features.") for name in saved)
    for name, value in loaded.items():
        torch.testing.assert_close(value, saved["features." + name.split(".", 1)[1]])


def test_gradients_reach_the_image_and_never_the_network(perceptual):
    images = torch.rand(1, 3, 32, 32)
    reconstruction = (images + 0.1).requires_grad_()
    perceptual(reconstruction, images).sum().backward()
    assert reconstruction.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in perceptual._network.parameters())


def test_dropout_of_the_heads_is_off_whatever_the_holder_does(perceptual):
    holder = torch.nn.Module()
    holder.perceptual = perceptual
    holder.train()
    a, b = torch.rand(2, 1, 3, 32, 32)
    assert torch.equal(perceptual(a, b), perceptual(a, b))
    assert holder.state_dict() == {}
    assert list(holder.parameters()) == []


def test_autocast_does_not_reach_the_network(perceptual):
    a, b = torch.rand(2, 1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = perceptual(a.bfloat16(), b.bfloat16())
    assert torch.equal(inside, perceptual(a.bfloat16().float(), b.bfloat16().float()))


def test_the_smallest_images_work_and_smaller_ones_are_refused(perceptual):
    side = MINIMUM_SIDE_PX["squeeze"]
    assert perceptual(torch.zeros(1, 3, side, side), torch.ones(1, 3, side, side)).isfinite().all()
    with pytest.raises(UserError, match=f"at least {side} px; got {side - 1} px"):
        perceptual(*torch.zeros(2, 1, 3, side - 1, side - 1))


def test_the_environment_variable_names_the_trunk(trunk_file, monkeypatch):
    monkeypatch.setenv("VARLIT_LPIPS_SQUEEZE", str(trunk_file))
    assert "features.0.weight" in load_trunk("squeeze")


def test_a_trunk_that_cannot_be_had_says_which_file_goes_where():
    with pytest.raises(UserError) as caught:
        load_trunk("vgg")
    message = str(caught.value)
    assert str(Path(torch.hub.get_dir()) / "checkpoints/vgg16-397923af.pth") in message
    assert "$VARLIT_LPIPS_VGG" in message
    assert "perceptual_weight 0" in message


@pytest.mark.parametrize("content", ["missing", "text", "list", "other network"])
def test_a_file_that_is_no_trunk_is_named(tmp_path, content):
    path = tmp_path / "trunk.pth"
    if content == "text":
        path.write_text("not weights")
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "other network":
        torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="squeeze"):
        PerceptualLoss("squeeze", str(path))


def test_a_trunk_of_other_shapes_is_refused(trunk_file, tmp_path):
    weights = torch.load(trunk_file, weights_only=True)
    weights["features.0.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "wide.pth")
    with pytest.raises(UserError, match="other shapes"):
        PerceptualLoss("squeeze", str(tmp_path / "wide.pth"))


@pytest.mark.skipif(not REAL_TRUNK.is_file(), reason="the real SqueezeNet trunk is not at hand")
def test_real_weights_give_the_values_that_torchmetrics_documents():
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    distance = PerceptualLoss("squeeze", str(REAL_TRUNK))(a, b)
    assert distance.tolist() == pytest.approx([0.1024, 0.0938], abs=1e-4)


@pytest.mark.skipif(not REAL_TRUNK.is_file(), reason="the real SqueezeNet trunk is not at hand")
def test_real_weights_give_the_doctest_value_of_torchmetrics():
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(10, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    distance = PerceptualLoss("squeeze", str(REAL_TRUNK))(a, b)
    assert distance.mean().item() == pytest.approx(0.1005, abs=1e-4)
