import pytest
import torch
from torch.nn import functional as F

from varlit.models.drawing_copy import drawing_copy, packed_copy
from varlit.models.packed_linear import PackedLinear, can_pack, has_packed_product

pytestmark = pytest.mark.skipif(
    not has_packed_product(), reason="this machine has no packed product"
)


@pytest.fixture(autouse=True)
def at_any_width(monkeypatch):
    monkeypatch.setattr("varlit.models.packed_linear.MIN_WIDTH", 1)


LABELS = torch.tensor([0, 2, 1])


def logits_of(var, rows=slice(None)):
    """Logits of all steps, drawn with a cache."""
    noise = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, side**2, 8, generator=noise)[rows] for side in (2, 4)]
    state = var.begin(LABELS[rows])
    return torch.cat([var.advance(state, part) for part in (None, *inputs)], dim=1)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_a_packed_layer_is_the_layer_and_its_gelu(rows, has_bias):
    linear, x = torch.nn.Linear(40, 24, bias=has_bias), torch.randn(3, rows, 40)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x))
    expected = F.gelu(linear(x), approximate="tanh")
    torch.testing.assert_close(PackedLinear(linear, has_gelu=True)(x), expected)
    bias = torch.randn(24)
    expected = F.linear(x, linear.weight, bias)
    torch.testing.assert_close(PackedLinear(linear, bias)(x), expected)


@pytest.mark.parametrize("shared_adaln", [False, True])
@torch.no_grad()
def test_a_packed_transformer_says_the_same_and_leaves_the_original_alone(make_var, shared_adaln):
    var = make_var(shared_adaln=shared_adaln).eval()
    before = logits_of(var)
    packed = packed_copy(var)
    torch.testing.assert_close(logits_of(packed), before, atol=2e-5, rtol=1e-5)
    assert torch.equal(logits_of(var), before)
    var.head.weight.zero_()
    torch.testing.assert_close(logits_of(packed), before, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_an_image_is_the_same_in_any_batch(make_var):
    packed = packed_copy(make_var().eval())
    torch.testing.assert_close(
        logits_of(packed, slice(1, 2)), logits_of(packed)[1:2], atol=2e-5, rtol=1e-5
    )


def test_only_fp32_on_this_cpu_is_packed(make_var, monkeypatch):
    var = make_var()
    assert can_pack(var)
    monkeypatch.setattr("varlit.models.packed_linear.MIN_WIDTH", 256)
    assert not can_pack(var), "it would not pay"
    monkeypatch.setattr("varlit.models.packed_linear.MIN_WIDTH", 1)
    assert not can_pack(drawing_copy(var, torch.bfloat16))
    assert not can_pack(var.to("meta"))
    monkeypatch.setattr("varlit.models.packed_linear._memory_bytes", lambda: 1000)
    assert not can_pack(make_var()), "it would not fit twice"
