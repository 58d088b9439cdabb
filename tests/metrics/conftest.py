"""What tests of feature networks share: Inception's format with random weights, real photos."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from varlit.metrics.inception import INCEPTION_FILE
from varlit.metrics.networks import Features


class Colours(nn.Module):
    """A small stand-in for Inception: random features of uint8 images of any size."""

    def __init__(self, dim: int = 6, num_classes: int = 5) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.pool = nn.Parameter(torch.randn(3 * 16, dim, generator=draw))
        self.logits = nn.Parameter(torch.randn(dim, num_classes, generator=draw))

    def forward(self, images: Tensor) -> Features:
        small = nn.functional.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)
        pool = small @ self.pool
        return Features(pool, small[:, :4], pool @ self.logits)


@pytest.fixture
def colours() -> nn.Module:
    return Colours()


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception with random weights that let signals through, in the format of the real file."""
    with pytest.MonkeyPatch.context() as patch:
        extractor = fidelity.FeatureExtractorInceptionV3
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        weights = extractor("random", ["2048"]).state_dict()
    draw = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name.endswith(("conv.weight", "fc.weight")):
            # He's deviation; larger for classes, or all images would be of all classes equally.
            gain = 40 if name == "fc.weight" else 1
            deviation = gain * math.sqrt(2 / value[0].numel())
            weights[name] = torch.randn(value.shape, generator=draw) * deviation
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.save(weights, path)
    return path


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """48 real crops (48, 3, 40, 40) uint8 of two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    crops = []
    for picture in load_sample_images().images:  # (427, 640, 3)
        whole = torch.from_numpy(picture.copy()).permute(2, 0, 1)
        places = [(y, x) for y in range(0, 360, 90) for x in range(0, 600, 100)]
        crops += [whole[:, y : y + 40, x : x + 40] for y, x in places]
    return torch.stack(crops)
