import copy
import pickle

import pytest
import torch

from varlit.errors import UserError
from varlit.models.attention import (
    AttentionPlan,
    attend,
    best_split,
    flex_plan,
    plan_attention,
    resolve_backend,
    split_after,
)
from varlit.models.blocks import Attention
from varlit.models.config import VARConfig
from varlit.ops.scales import OFFICIAL_SCALES, Scales

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DIGITS = (1, 2, 3, 4)
SCHEDULES = [(1,), (8,), (1, 2, 3), (2, 3), DIGITS, (1, 2, 3, 4, 6, 8), OFFICIAL_SCALES[256]]
each_schedule = pytest.mark.parametrize("sides", SCHEDULES, ids=str)


def inputs(scales, batch_size=2, num_heads=2, head_dim=8):
    size = (batch_size, scales.num_tokens, num_heads, head_dim)
    return [torch.randn(size).transpose(1, 2).requires_grad_() for _ in range(3)]


def outcome(qkv, plan, scale=0.7):
    """What comes out, and the gradients of queries, keys and values."""
    out = attend(*qkv, plan, scale)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator)
    return [out.detach(), *torch.autograd.grad(out, qkv, weight)]


def in_many_calls(scales):
    """The plan that differs most from one masked call."""
    return AttentionPlan("segmented", split_after(scales, 1))


def assert_equal_within_rounding(found, expected):
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


@each_schedule
def test_dense_is_softmax_over_the_block_causal_mask(sides):
    scales = Scales(sides)
    q, k, v = qkv = inputs(scales)
    weights = (q @ k.transpose(-2, -1) * 0.7).masked_fill(~scales.block_causal_mask(), -torch.inf)
    expected = (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)
    found = attend(*qkv, plan_attention(scales, "dense"), 0.7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@each_schedule
@pytest.mark.parametrize("make", [lambda s: plan_attention(s, "segmented"), in_many_calls])
def test_segments_equal_dense_forward_and_in_every_gradient(sides, make):
    scales = Scales(sides)
    qkv = inputs(scales)
    expected = outcome(qkv, plan_attention(scales, "dense"))
    assert_equal_within_rounding(outcome(qkv, make(scales)), expected)


def test_segments_equal_dense_at_512_px():
    scales = Scales(OFFICIAL_SCALES[512])
    qkv = inputs(scales, batch_size=1, num_heads=1)
    plan = plan_attention(scales, "segmented")
    expected = outcome(qkv, plan_attention(scales, "dense"))
    assert_equal_within_rounding(outcome(qkv, plan), expected)


@pytest.mark.parametrize("sides", [DIGITS, OFFICIAL_SCALES[256]], ids=str)
@pytest.mark.parametrize("qk_l2_norm", [True, False])
def test_a_layer_has_the_same_gradients_whichever_way_it_attends(sides, qk_l2_norm):
    config = VARConfig(depth=2, width=16, num_heads=2, qk_l2_norm=qk_l2_norm)
    layer, scales = Attention(config), Scales(sides)
    x = torch.randn(2, scales.num_tokens, 16, requires_grad=True)
    weight = torch.randn(2, scales.num_tokens, 16)

    def run(plan):
        out = layer(x, plan)
        # In one order of magnitude: a weight's gradient is a sum over all tokens.
        wanted = [x, *(p for p in layer.parameters() if p is not layer.projection.bias)]
        return [out.detach(), *torch.autograd.grad(out, wanted, weight / len(weight[0]))]

    expected = run(scales.block_causal_mask())
    for plan in (plan_attention(scales, "dense"), plan_attention(scales), in_many_calls(scales)):
        assert_equal_within_rounding(run(plan), expected)


@pytest.mark.filterwarnings("ignore")  # uncompiled, flex warns that it is slow
@pytest.mark.parametrize("sides", [(1, 2, 3), DIGITS, OFFICIAL_SCALES[256]], ids=str)
@torch.no_grad()
def test_flex_equals_dense_where_a_cpu_can_run_it(sides):
    scales = Scales(sides)
    qkv = [t.detach() for t in inputs(scales)]
    found = attend(*qkv, flex_plan(scales, CPU), 0.7)
    expected = attend(*qkv, plan_attention(scales, "dense"), 0.7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("sides", [OFFICIAL_SCALES[256], OFFICIAL_SCALES[512]], ids=str)
@pytest.mark.parametrize("backend", ["dense", "segmented", "flex"])
def test_on_a_gpu_every_way_gives_the_gradients_of_dense(sides, backend):
    scales = Scales(sides)
    exact = [t.detach().double().requires_grad_() for t in inputs(scales, 2, 2, head_dim=64)]
    near = [t.detach().to(CUDA, torch.bfloat16).requires_grad_() for t in exact]
    expected = outcome(exact, plan_attention(scales, "dense"), scale=0.125)
    plan = plan_attention(scales, backend, CUDA)
    out = attend(*near, plan, 0.125)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = [out.detach(), *torch.autograd.grad(out, near, weight.to(CUDA, torch.bfloat16))]
    for ours, reference in zip(found, expected, strict=True):
        apart = (ours.cpu().double() - reference).norm() / reference.norm()
        assert apart < 0.02, "bf16 keeps 8 bits"


def test_the_best_split_is_that_of_the_research():
    found = {
        side: (split := best_split(Scales(OFFICIAL_SCALES[side])), sum(s.cells for s in split))
        for side in (256, 512)
    }
    split, cells = found[256]
    assert [(s.start, s.end, s.is_masked) for s in split] == [
        (0, 255, True),
        (255, 424, False),
        (424, 680, False),
    ]
    assert round(cells / 680**2, 2) == 0.67
    split, cells = found[512]
    assert [s.end for s in split] == [316, 640, 1216, 2240]
    assert round(cells / 2240**2, 2) == 0.66


@each_schedule
def test_segments_cover_every_token_once(sides):
    scales = Scales(sides)
    for num_maps in range(1, scales.num_scales + 1):
        split = split_after(scales, num_maps)
        starts = [0, *(segment.end for segment in split)]
        assert starts == [*(segment.start for segment in split), scales.num_tokens]
        assert [s.is_masked for s in split] == [num_maps > 1] + [False] * (len(split) - 1)


def test_short_pyramids_take_a_single_call():
    assert len(best_split(Scales(DIGITS))) == 1
    assert plan_attention(Scales((8,))).mask is None, "one map sees all of itself"


def test_auto_is_flex_for_long_pyramids_on_cuda_only(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    short, long = Scales(OFFICIAL_SCALES[256]), Scales(OFFICIAL_SCALES[512])
    assert resolve_backend(short, "auto", CUDA) == "segmented"
    assert resolve_backend(long, "auto", CUDA) == "flex"
    assert resolve_backend(long, "auto", CPU) == "segmented"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_backend(long, "auto", CUDA) == "segmented", "without triton"


def test_flex_on_a_cpu_and_unknown_ways_are_refused_in_a_line():
    with pytest.raises(UserError, match=r"`flex` needs a CUDA GPU.*on the cpu; take `segmented`"):
        plan_attention(Scales(DIGITS), "flex")
    with pytest.raises(UserError, match="auto, dense, segmented, flex; got `flash`"):
        plan_attention(Scales(DIGITS), "flash")


def test_a_plan_made_in_inference_mode_trains():
    scales = Scales((1, 2, 3))
    with torch.inference_mode():
        plan = plan_attention(scales)
    outcome(inputs(scales), plan)


def test_gradients_of_a_prefix_can_be_taken_twice():
    scales = Scales((1, 2))
    qkv = [t.detach().double().requires_grad_() for t in inputs(scales, 1, 1, 2)]
    plan = in_many_calls(scales)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda *t: attend(*t, plan, 1.0), qkv)


def test_it_runs_in_bf16_close_to_fp32():
    scales = Scales(OFFICIAL_SCALES[256])
    qkv = inputs(scales)
    exact = outcome(qkv, plan_attention(scales, "dense"))
    half = [t.detach().bfloat16().requires_grad_() for t in qkv]
    out = attend(*half, plan_attention(scales), 0.7)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact[0]).norm() / exact[0].norm() < 0.02


def test_a_network_with_plans_can_be_copied_and_pickled(make_var):
    var = make_var(scales=OFFICIAL_SCALES[256])
    labels, teacher = torch.tensor([1]), torch.randn(1, 679, 8)
    out = var(labels, teacher)
    for other in (copy.deepcopy(var), pickle.loads(pickle.dumps(var))):
        assert torch.equal(other(labels, teacher), out)
