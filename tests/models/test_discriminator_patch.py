import pytest
import torch

from varlit.errors import UserError
from varlit.models.discriminator_config import DiscriminatorConfig
from varlit.models.discriminator_patch import PatchDiscriminator

SMALL = DiscriminatorConfig(channels=32, num_layers=3)


def test_three_layers_judge_patches_of_70_px():
    network = PatchDiscriminator(SMALL)
    for layer in network.modules():  # group norm looks at the whole map: only convolutions count
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda x: x
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(images)
    logits[0, 0, 7, 7].backward()
    touched = images.grad[0].abs().sum(dim=0).nonzero()
    assert (touched.amax(dim=0) - touched.amin(dim=0) + 1).tolist() == [70, 70]


def test_the_smallest_image_gives_one_logit_and_a_smaller_one_a_remedy_that_fits():
    network = PatchDiscriminator(SMALL)
    assert network.minimum_side_px == 24
    assert network(torch.zeros(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(UserError, match=r"at least 24 px; got 23 px: set .*num_layers 2"):
        network(torch.zeros(2, 3, 23, 23))
    with pytest.raises(UserError, match="set disc_weight 0"):
        network.check_image_size(4)
