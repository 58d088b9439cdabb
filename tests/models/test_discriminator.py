"""What holds for every kind of discriminator."""

import copy
import warnings

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from varlit.errors import UserError
from varlit.models.discriminator import DiscriminatorConfig, build_discriminator
from varlit.models.discriminator_config import KINDS

SIDE = 32


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(params=KINDS)
def network(request, trunk_file):
    torch.manual_seed(0)
    if request.param == "dino":
        fields = {"trunk": "test_vit", "weights": str(trunk_file)}
    else:
        fields = {"channels": 32, "num_layers": 2}
    return build_discriminator(DiscriminatorConfig(kind=request.param, **fields))


def held(network):
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_logits_of_an_image_depend_on_that_image_alone(network):
    network.eval()
    images = torch.randn(3, 3, SIDE, SIDE)
    together, alone = network(images), network(images[1:2])
    assert together.shape == (3, *alone.shape[1:])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_held_weights_judge_as_learning_ones_do_and_change_no_buffer(network):
    network.train()
    images = torch.randn(2, 3, SIDE, SIDE)
    learning = network(images)  # moves the singular vectors, where there are any
    before = state(network)
    judged = functional_call(network, held(network), (images,))
    assert same(state(network), before)
    # Spectral norm was found with these very vectors, so both players see one function.
    assert torch.equal(judged, learning)


def test_the_fused_step_has_the_gradients_of_two_separate_ones(network):
    network.train()
    apart = copy.deepcopy(network)
    real, noise = torch.randn(2, 2, 3, SIDE, SIDE)
    scale = torch.ones(1, requires_grad=True)  # stands for the generator
    fake = noise * scale
    generator = -functional_call(network, held(network), (fake,)).mean()
    logits = network(torch.cat((real, fake.detach())))
    (generator + torch.relu(1 + logits).mean()).backward()

    scale_apart = torch.ones(1, requires_grad=True)
    apart.requires_grad_(False)
    (-apart(noise * scale_apart).mean()).backward()
    apart.requires_grad_(True)
    torch.relu(1 + apart(torch.cat((real, noise)))).mean().backward()
    torch.testing.assert_close(scale.grad, scale_apart.grad)
    for a, b in zip(network.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert same(state(network), state(apart))


def test_bf16_autocast_gives_nearly_the_logits_of_fp32_and_finite_gradients(network):
    network.eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network.train()(images)
    fine = network.eval()(images)
    assert (rough.float() - fine).abs().max() < 0.1 * fine.abs().max() + 0.05
    rough.float().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_double_precision_reaches_every_weight(network):
    logits = network.double()(torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64))
    assert logits.dtype == torch.float64
    logits.sum().backward()
    assert all(parameter.grad.dtype == torch.float64 for parameter in network.parameters())


def test_the_gradient_at_an_image_is_differentiable(network):
    images = torch.randn(1, 3, SIDE, SIDE, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(network(images).mean(), images, create_graph=True)
    slope.square().sum().backward()
    reached = [parameter.grad is not None for parameter in network.parameters()]
    assert sum(reached) > len(reached) / 2


def test_every_parameter_is_used(network):
    network(torch.randn(2, 3, SIDE, SIDE)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_smallest_image_is_judged_and_a_smaller_one_gets_a_remedy(network):
    side = network.minimum_side_px
    assert network(torch.zeros(1, 3, side, side)).isfinite().all()
    with pytest.raises(UserError, match=rf"at least {side} px; got {side - 1} px: set"):
        network(torch.zeros(1, 3, side - 1, side - 1))


@pytest.mark.parametrize("field", [{"channels": 48}, {"num_layers": 0}])
def test_a_shape_that_cannot_be_built_is_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        DiscriminatorConfig(**field)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="patch"):
        DiscriminatorConfig(kind="biggan")


def test_fields_of_another_kind_warn():
    with pytest.warns(UserWarning, match=r"channels is ignored: only patch and stylegan read it"):
        DiscriminatorConfig(kind="dino", channels=128)
    with pytest.warns(UserWarning, match="weights is ignored"):
        DiscriminatorConfig(weights="dino.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in KINDS:
            config = DiscriminatorConfig(kind=kind)
            assert DiscriminatorConfig.of(config.to_dict()) == config
