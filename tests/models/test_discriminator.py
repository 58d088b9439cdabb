import pytest
import torch
from torch.func import functional_call

from varlit.errors import UserError
from varlit.models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    build_discriminator,
)

SMALL = DiscriminatorConfig(channels=32, num_layers=3)


def test_three_layers_judge_patches_of_70_px():
    network = PatchDiscriminator(DiscriminatorConfig(channels=32, num_layers=3))
    for layer in network.modules():  # group norm looks at the whole map: only convolutions count
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda x: x
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(images)
    logits[0, 0, 7, 7].backward()
    touched = images.grad[0].abs().sum(dim=0).nonzero()
    assert (touched.amax(dim=0) - touched.amin(dim=0) + 1).tolist() == [70, 70]


def test_the_smallest_image_gives_one_logit_and_a_smaller_one_a_remedy():
    network = build_discriminator(SMALL)
    assert network.minimum_side_px == 24
    assert network(torch.zeros(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(UserError, match=r"at least 24 px; got 23 px: set .*num_layers 2"):
        network(torch.zeros(2, 3, 23, 23))
    with pytest.raises(UserError, match="set disc_weight 0"):
        network.check_image_size(4)


def test_logits_of_an_image_do_not_depend_on_its_batch_or_on_the_mode():
    network = build_discriminator(SMALL)
    images = torch.randn(3, 3, 32, 32)
    together = network(images)
    alone = network.eval()(images[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_generator_pass_with_detached_parameters_reaches_the_image_only():
    network = build_discriminator(SMALL)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
    functional_call(network, frozen, (images,)).mean().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("field", [{"channels": 48}, {"num_layers": 0}])
def test_a_shape_that_cannot_be_built_is_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        DiscriminatorConfig(**field)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="patch"):
        build_discriminator(DiscriminatorConfig(kind="dino"))
