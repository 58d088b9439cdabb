"""Classifiers of torchvision, timm and the small file: weights by file, the view their own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from varlit.errors import UserError
from varlit.models.classifier import Classifier, View, open_classifier
from varlit.models.mobilenet import MobileNetV2


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("VARLIT_CLASSIFIER", "VARLIT_MOBILENET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory) -> Path:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1().state_dict(), path)
    return path


def photos(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("side", [64, 256])
def test_a_torchvision_classifier_sees_what_its_own_transform_makes(squeezenet, side):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    found = open_classifier("torchvision:squeezenet1_1", str(squeezenet))
    theirs = squeezenet1_1().eval()
    theirs.load_state_dict(torch.load(squeezenet, weights_only=True))
    images = photos(side)
    bytes_ = ((images + 1) * 127.5).round().to(torch.uint8)
    seen = SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()(bytes_.float() / 255)
    with torch.no_grad():
        torch.testing.assert_close(found(images), theirs(seen), rtol=1e-4, atol=1e-5)
    assert (found.num_classes, found.class_names[985]) == (1000, "daisy")
    assert len(found.protocol()["classifier_weights_sha256"]) == 64


def test_a_timm_classifier_may_have_classes_of_its_own(tmp_path: Path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet.r160_in1k", num_classes=5)
    save_file(network.state_dict(), tmp_path / "five.safetensors")
    found = open_classifier("timm:test_resnet.r160_in1k", str(tmp_path / "five.safetensors"))
    assert (found.num_classes, found.class_names) == (5, ())
    spec = timm.data.resolve_data_config(model=network)
    view = View(
        int(spec["input_size"][1] / spec["crop_pct"]),
        spec["input_size"][1],
        spec["interpolation"],
        spec["mean"],
        spec["std"],
    )
    images = photos(64)
    seen = view(((images + 1) * 127.5).round() / 255)
    with torch.no_grad():
        torch.testing.assert_close(found(images), network.eval()(seen), rtol=1e-4, atol=1e-5)


def test_the_small_file_is_opened_by_its_name(tmp_path: Path, monkeypatch):
    path = tmp_path / "mobilenet_v2_fp16.pth"
    torch.save({k: v.half() for k, v in MobileNetV2().state_dict().items()}, path)
    monkeypatch.setenv("VARLIT_MOBILENET", str(path))
    found = open_classifier("mobilenet_v2")
    assert found(photos(32)).shape == (2, 1000)
    assert found.class_names[985] == "daisy"


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet50", None, "torchvision:NAME, timm:NAME or mobilenet_v2; got 'resnet50'"),
        ("torchvision:resnet51", None, "torchvision has no classifier 'resnet51'"),
        ("timm:resnet51", None, "timm has no model 'resnet51'"),
        ("torchvision:squeezenet1_1", None, "give the path of squeezenet1_1-b8a52dc0.pth"),
        ("torchvision:squeezenet1_1", "gone.pth", "no file gone.pth"),
        ("mobilenet_v2", None, "put the path of mobilenet_v2_fp16.pth in \\$VARLIT_MOBILENET"),
    ],
)
def test_what_is_not_at_hand_is_asked_for_and_nothing_is_fetched(name, weights, said, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=said):
        open_classifier(name, weights)


def test_a_file_of_another_network_is_refused(squeezenet, tmp_path: Path):
    with pytest.raises(UserError, match="does not hold the weights of torchvision:alexnet"):
        open_classifier("torchvision:alexnet", str(squeezenet))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(squeezenet.read_bytes()[:1000])
    with pytest.raises(UserError, match="does not hold the weights"):
        open_classifier("torchvision:squeezenet1_1", str(broken))


def test_a_failed_download_says_which_file_to_give(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route\): give the path of"):
        open_classifier("torchvision:squeezenet1_1", "download")


def test_a_network_that_gives_no_logits_is_refused():
    with pytest.raises(UserError, match="a row of logits for each image"):
        Classifier(nn.Identity(), "mine")


def test_names_of_another_number_are_refused():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert Classifier(network, "mine", class_names=("a", "b", "c")).num_classes == 3
    with pytest.raises(UserError, match="has 3 outputs; got 2 class names"):
        Classifier(network, "mine", class_names=("a", "b"))
