import pytest
import torch

from varlit.ops.quantize import nearest_code, strict_fp32

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
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield matmul, cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [(True, True), (False, True), (True, False), (False, False)])
def test_tf32_is_off_inside_and_as_before_outside(flags, allowed):
    matmul, cudnn = flags
    matmul.allow_tf32, cudnn.allow_tf32 = allowed
    enabled = cudnn.enabled
    with strict_fp32(CUDA):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert cudnn.enabled == enabled, "cuDNN itself stays on"
    assert (matmul.allow_tf32, cudnn.allow_tf32) == allowed
    with pytest.raises(KeyError), strict_fp32(CUDA):
        raise KeyError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == allowed


def test_on_the_cpu_the_switches_of_the_gpu_are_left_alone(flags):
    matmul, cudnn = flags
    matmul.allow_tf32, cudnn.allow_tf32 = True, True
    with strict_fp32(CPU):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
