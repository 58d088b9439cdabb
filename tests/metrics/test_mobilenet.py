import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.metrics.mobilenet import open_mobilenet
from varlit.metrics.networks import open_network
from varlit.models.mobilenet import (
    MOBILENET_FILE,
    MobileNetV2,
    find_mobilenet,
    load_mobilenet,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS, PHOTOS = SHARED / "weights" / MOBILENET_FILE, SHARED / "flowers256.tar"
needs_weights = pytest.mark.skipif(
    not (WEIGHTS.is_file() and PHOTOS.is_file()), reason="needs ../shared/data"
)
DAISY = 985  # among ImageNet's classes


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("VARLIT_MOBILENET", raising=False)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    state = {name: value.half() for name, value in MobileNetV2().state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(state, path)
    return path


def test_it_is_torchvision_s_network_with_batch_norm_folded_and_tensorflow_s_padding(
    random_weights,
):
    from torchvision.models import mobilenet_v2

    theirs, ours = mobilenet_v2().eval(), load_mobilenet(random_weights).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1 - module.eps)  # adds its bias and does nothing else
        elif isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda _, x: (F.pad(x[0], (0, 1, 0, 1)),))
    target = theirs.state_dict()
    for name, value in ours.state_dict().items():
        stem, place, kind = name.rsplit(".", 2)
        is_folded = name not in target
        assert not is_folded or kind == "bias"
        target[f"{stem}.{int(place) + 1}.bias" if is_folded else name].copy_(value)
    images = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = theirs(images / 127.5 - 1), ours(images)
    assert found.pool.shape == (2, 1280)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_where_there_is_no_file_the_error_says_which_goes_where(tmp_path, random_weights):
    with pytest.raises(UserError, match=r"mobilenet_v2_fp16\.pth in \$VARLIT_MOBILENET"):
        open_network("mobilenet_v2")
    with pytest.raises(UserError, match=r"absent\.pth; expected the file mobilenet_v2_fp16"):
        find_mobilenet(str(tmp_path / "absent.pth"))
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="does not hold MobileNetV2's weights"):
        load_mobilenet(other)
    other.write_bytes(random_weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="does not hold MobileNetV2's weights"):
        load_mobilenet(other)


def test_the_variable_names_the_file(random_weights, monkeypatch):
    monkeypatch.setenv("VARLIT_MOBILENET", str(random_weights))
    network = open_network("mobilenet_v2")
    assert (network.name, network.feature_dim, network.num_classes) == ("mobilenet_v2", 1280, 1000)
    assert network.weights_file == random_weights.name
    assert not network.is_inception


@needs_weights
def test_the_real_weights_know_a_daisy():
    with tarfile.open(PHOTOS) as archive:
        names = [n for n in archive.getnames() if "val/daisy/" in n and n.endswith(".jpg")][::2]
        pictures = [Image.open(archive.extractfile(name)).convert("RGB") for name in names]
    seen = [torch.tensor(np.array(picture.resize((256, 256)))) for picture in pictures]
    logits = open_mobilenet(str(WEIGHTS))(torch.stack(seen).permute(0, 3, 1, 2)).logits
    assert logits is not None
    named = logits.argmax(dim=1)
    print(f"{int((named == DAISY).sum())} of {len(named)} daisies are named daisy")
    assert (named == DAISY).double().mean() > 0.7  # in 1000 classes, bees and vases among them
