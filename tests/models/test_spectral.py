import torch
from torch.func import functional_call
from torch.nn import functional as F

from varlit.models.spectral import SpectralConv1d


def largest(weight):
    return torch.linalg.matrix_norm(weight.flatten(1), ord=2)


def test_the_weight_used_has_largest_singular_value_1():
    torch.manual_seed(0)
    conv = SpectralConv1d(6, 8, 3)
    for _ in range(50):
        conv(torch.randn(1, 6, 10))
    torch.testing.assert_close(largest(conv.normalized_weight()), torch.tensor(1.0))
    with torch.no_grad():
        conv.weight.mul_(100)
    torch.testing.assert_close(largest(conv.normalized_weight()), torch.tensor(1.0))


def test_the_gradient_is_that_of_the_weight_over_its_exact_norm():
    torch.manual_seed(0)
    conv = SpectralConv1d(4, 5, 1).double()
    for _ in range(200):
        conv.normalized_weight()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    conv(x).square().mean().backward()
    weight = conv.weight.detach().requires_grad_()
    F.conv1d(x, weight / largest(weight), conv.bias.detach()).square().mean().backward()
    torch.testing.assert_close(conv.weight.grad, weight.grad, atol=1e-8, rtol=1e-6)


def test_the_singular_vectors_move_in_train_mode_with_learning_weights_only():
    torch.manual_seed(0)
    conv, x = SpectralConv1d(6, 8, 3), torch.randn(1, 6, 10)
    with torch.no_grad():
        conv.weight.copy_(torch.randn_like(conv.weight))  # far from convergence
    before = conv.left.clone()
    conv.eval()(x)
    conv.train()
    functional_call(conv, {k: v.detach() for k, v in conv.named_parameters()}, (x,))
    assert torch.equal(conv.left, before)
    conv(x)
    assert not torch.equal(conv.left, before)


def test_tokens_form_a_ring():
    conv, x = SpectralConv1d(3, 3, 9).eval(), torch.randn(1, 3, 12)
    torch.testing.assert_close(conv(x.roll(5, 2)), conv(x).roll(5, 2))


def test_a_checkpoint_brings_the_singular_vectors_along():
    conv, restored = SpectralConv1d(6, 8, 3), SpectralConv1d(6, 8, 3)
    restored.load_state_dict(conv.state_dict())
    assert torch.equal(restored.eval().normalized_weight(), conv.eval().normalized_weight())
