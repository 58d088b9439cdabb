"""What evaluation looks with, without a download: the real networks with random weights.

Random weights take as long as trained ones.
"""

import math
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.inception import INCEPTION_FILE, open_inception
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.metrics.references import Reference, make_reference
from varlit.models.mobilenet import INPUT_PX, MobileNetV2

SEED = 0


def random_inception() -> FeatureNetwork:
    """torch-fidelity's Inception with He's initial weights, through the file that it reads."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    extractor = fidelity.FeatureExtractorInceptionV3
    with (
        patch.object(fidelity, "load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(extractor, "load_state_dict", lambda *_: None),
    ):
        weights = extractor("random", ["2048"]).state_dict()
    draw = torch.Generator().manual_seed(SEED)
    for name, value in weights.items():
        if name.endswith(("conv.weight", "fc.weight")):
            deviation = math.sqrt(2 / value[0].numel())
            weights[name] = torch.randn(value.shape, generator=draw) * deviation
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these are not the weights of published numbers
        path = Path(made) / INCEPTION_FILE
        torch.save(weights, path)
        return open_inception(str(path))


def random_mobilenet() -> FeatureNetwork:
    """MobileNetV2 as it is initialised."""
    torch.manual_seed(SEED)
    return FeatureNetwork(MobileNetV2(), "mobilenet_v2_random", input_px=INPUT_PX)


def tiny_network() -> FeatureNetwork:
    """Averages of pixels, for the tests."""
    return FeatureNetwork(_Averages(), "averages")


class _Averages(nn.Module):
    def forward(self, images: Tensor) -> Features:
        pool = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return Features(pool, pool[:, :3], pool[:, :5])


def random_reference(network: FeatureNetwork, count: int, image_px: int) -> Reference:
    """A reference of random features, as large as one of real images."""
    draw = torch.Generator().manual_seed(SEED)
    features = ImageFeatures(network)
    features.image_px = image_px
    for ids in torch.arange(count).split(1000):

        def rows(dim: int | None, num_rows: int = len(ids)) -> Tensor | None:
            return None if dim is None else torch.randn(num_rows, dim, generator=draw)

        pool = rows(network.feature_dim)
        assert pool is not None
        features.add(ids, Features(pool, rows(network.spatial_dim), rows(network.num_classes)))
    return make_reference(features, "random", "0" * 64)
