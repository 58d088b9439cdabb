import math
import threading

import pytest
import torch

from varlit.ops.quantize import assignment_entropy, nearest_code, strict_fp32

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_nearest_code_is_that_of_all_distances_in_double_precision():
    z, codebook = torch.randn(500, 6), torch.randn(40, 6)
    expected = torch.cdist(z.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest_code(z, codebook), expected)


def test_cosine_search_looks_at_the_angle_only():
    z, codebook = torch.randn(300, 6), torch.randn(40, 6)
    found = nearest_code(z, codebook, "cosine")
    similarity = torch.cosine_similarity(z[:, None].double(), codebook[None].double(), dim=-1)
    assert torch.equal(found, similarity.argmax(dim=1))
    lengths = torch.rand(40, 1) + 0.1
    assert torch.equal(nearest_code(5 * z, lengths * codebook, "cosine"), found)
    assert not torch.equal(found, nearest_code(z, codebook)), "the searches differ"


@pytest.mark.parametrize("search", ["euclidean", "cosine"])
def test_every_code_finds_itself_and_the_first_of_equals_wins(search):
    codebook = torch.randn(20, 4)
    assert torch.equal(nearest_code(codebook, codebook, search), torch.arange(20))
    twice = torch.cat((codebook, codebook))
    assert torch.equal(nearest_code(codebook, twice, search), torch.arange(20))


def test_autocast_is_off_inside_and_back_on_outside():
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with strict_fp32(CPU):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
        with pytest.raises(KeyError), strict_fp32(CPU):
            raise KeyError
        assert (a @ a).dtype == torch.bfloat16


@pytest.fixture
def flags():
    """TF32 switches, which exist without a GPU too; restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.fp32_precision, cudnn.conv.fp32_precision
    yield matmul, cudnn
    matmul.fp32_precision, cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("allowed", [(True, True), (False, True), (True, False), (False, False)])
def test_tf32_is_off_inside_and_as_before_outside(flags, allowed):
    matmul, cudnn = flags
    matmul.allow_tf32, cudnn.allow_tf32 = allowed
    enabled = cudnn.enabled
    with strict_fp32(CUDA), strict_fp32(CUDA):
        assert (matmul.fp32_precision, cudnn.conv.fp32_precision) == ("ieee", "ieee")
        assert cudnn.enabled == enabled, "cuDNN itself stays on"
    assert (matmul.allow_tf32, cudnn.allow_tf32) == allowed
    with pytest.raises(KeyError), strict_fp32(CUDA):
        raise KeyError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == allowed


def test_the_newer_switches_are_understood_too(flags):
    matmul, cudnn = flags
    matmul.fp32_precision, cudnn.conv.fp32_precision = "tf32", "ieee"
    with strict_fp32(CUDA):
        assert matmul.fp32_precision == "ieee"
    assert (matmul.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "ieee")


def test_a_thread_that_leaves_does_not_switch_tf32_on_for_another(flags):
    matmul, _ = flags
    matmul.fp32_precision = "tf32"

    def search_in_another_thread():
        with strict_fp32(CUDA):
            pass

    with strict_fp32(CUDA):
        other = threading.Thread(target=search_in_another_thread)
        other.start()
        other.join()
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "tf32"


def test_on_the_cpu_the_switches_of_the_gpu_are_left_alone(flags):
    matmul, cudnn = flags
    matmul.allow_tf32, cudnn.allow_tf32 = True, True
    with strict_fp32(CPU):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)


def entropy_by_hand(z, codebook, temperature, search):
    if search == "cosine":
        z, codebook = (torch.nn.functional.normalize(x, dim=1) for x in (z, codebook))
    share = (-torch.cdist(z, codebook).square() / temperature).softmax(dim=1)
    mean = share.mean(dim=0)
    return torch.special.entr(share).sum(1).mean() - torch.special.entr(mean).sum()


@pytest.mark.parametrize("search", ["euclidean", "cosine"])
@pytest.mark.parametrize("max_elements", [10, 200, 2**20])
def test_entropy_and_its_gradients_are_the_formulas_in_chunks_of_any_size(search, max_elements):
    inputs = torch.randn(50, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    found = assignment_entropy(*inputs, 0.5, search, max_elements)
    expected = entropy_by_hand(*doubles, 0.5, search)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(found, inputs)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, doubles), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


def test_entropy_is_least_when_codes_are_sure_and_even_and_zero_when_one_takes_all():
    codebook = torch.eye(8) * 10
    assert assignment_entropy(codebook, codebook, 1.0).item() == pytest.approx(-math.log(8))
    one = codebook[:1].expand(20, -1).clone().requires_grad_()
    collapsed = assignment_entropy(one, codebook, 1.0)
    assert collapsed.item() == pytest.approx(0, abs=1e-6)
    collapsed.backward()
    assert one.grad.isfinite().all(), "although the shares of seven codes are 0"


def test_a_step_down_the_entropy_spreads_vectors_over_more_codes():
    codebook = torch.randn(16, 4)
    z = (0.05 * torch.randn(200, 4) + codebook[0]).requires_grad_()
    before = nearest_code(z.detach(), codebook).unique().numel()
    optimizer = torch.optim.SGD([z], lr=200.0)
    for _ in range(50):
        optimizer.zero_grad()
        assignment_entropy(z, codebook, 1.0).backward()
        optimizer.step()
    assert nearest_code(z.detach(), codebook).unique().numel() > 3 * before


def test_entropy_does_not_see_autocast():
    z, codebook = torch.randn(20, 4, requires_grad=True), torch.randn(5, 4)
    (plain,) = torch.autograd.grad(assignment_entropy(z, codebook, 1.0), z)
    with torch.autocast("cpu", torch.bfloat16):
        value = assignment_entropy(z, codebook, 1.0)
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.equal(gradient, plain)
