import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.metrics.networks import FeatureNetwork, register_network
from varlit.training.evaluation_config import EvaluationConfig


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="at least 2 images"):
        EvaluationConfig(quick=1)
    with pytest.raises(UserError, match="top_p"):
        EvaluationConfig(top_p=3.0)
    with pytest.raises(UserError, match="npz"):
        EvaluationConfig(samples="folder/")


def test_fewer_than_published_figures_are_of_are_a_quick_look_or_nothing():
    with pytest.raises(UserError, match="give quick 5000"):
        EvaluationConfig(num_images=5000)
    assert EvaluationConfig(quick=5000).count == 5000
    assert EvaluationConfig().count == 50_000
    assert EvaluationConfig(num_images=60_000).count == 60_000


def test_references_are_given_with_commas_between():
    assert EvaluationConfig(reference="a.npz, data:val").references == ("a.npz", "data:val")
    assert EvaluationConfig().references == ()


def test_what_decides_the_images_is_in_the_drawing_and_what_does_not_is_not():
    plain = EvaluationConfig().drawing()
    assert EvaluationConfig(batch_size=3, reference="x").drawing() == plain
    for change in ({"top_k": 1}, {"seed": 3}, {"quick": 9}, {"guidance": "constant"}):
        assert EvaluationConfig(**change).drawing() != plain


def test_fewer_images_than_features_are_refused_before_anything_is_drawn():
    class Wide(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 50_001)

    register_network("wide", lambda weights: FeatureNetwork(Wide(), "wide"))
    with pytest.raises(UserError, match=r"too few for 50,001 features of wide"):
        EvaluationConfig(network="wide").open_network()
    assert EvaluationConfig(network="wide", quick=5).open_network().feature_dim == 50_001


def test_the_older_name_of_the_weights_still_works(tmp_path):
    with pytest.raises(UserError, match=r"no Inception weights at .*mine\.pth"):
        EvaluationConfig(inception=str(tmp_path / "mine.pth")).open_network()
