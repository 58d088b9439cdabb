"""The raster-scan baseline: the same transformer, one token a step."""

import json
from dataclasses import replace

import pytest
import torch

from varlit.errors import UserError
from varlit.models.attention import flex_plan, plan_attention, resolve_backend
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_var, save_var
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.ops.raster import RasterScan
from varlit.ops.scales import OFFICIAL_SCALES, Scales

SIDE, NUM_TOKENS = 4, 16
LABELS = torch.tensor([0, 2, 3])  # the last one is the unconditional class
VARIANTS = [{}, {"shared_adaln": True}, {"qk_l2_norm": False}]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def make_raster(make_var):
    def make(**changes):
        return make_var(scales=(SIDE,), order="raster", **changes)

    return make


def some_tokens():
    return torch.randint(24, (len(LABELS), NUM_TOKENS))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@torch.no_grad()
def test_cached_sampling_equals_the_full_pass(make_raster, make_tokenizer, variant):
    var, tokenizer = make_raster(**variant), make_tokenizer(scales=(SIDE,))
    inputs = tokenizer.teacher_inputs(some_tokens(), "raster")
    assert inputs.shape == (3, NUM_TOKENS - 1, 8)
    full, state = var(LABELS, inputs), var.begin(LABELS)
    assert full.shape == (3, NUM_TOKENS, 24)
    logits = [var.advance(state)]
    logits += [var.advance(state, inputs[:, k : k + 1]) for k in range(NUM_TOKENS - 1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", [0, 5, NUM_TOKENS - 1])
@torch.no_grad()
def test_no_token_sees_itself_or_a_later_one_and_all_later_ones_see_it(
    make_raster, make_tokenizer, place
):
    var, tokenizer = make_raster(), make_tokenizer(scales=(SIDE,))
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 7) % 24
    before, after = (var(LABELS, tokenizer.teacher_inputs(t, "raster")) for t in (tokens, changed))
    assert torch.equal(before[:, : place + 1], after[:, : place + 1])
    moved = (before - after).abs().amax(dim=(0, 2))[place + 1 :]
    assert (moved > 1e-4).all()


def test_a_token_is_told_the_code_before_it(make_tokenizer):
    tokenizer, tokens = make_tokenizer(scales=(SIDE,)), some_tokens()
    codes = tokenizer.quantizer.codebook(tokens)
    assert torch.equal(tokenizer.teacher_inputs(tokens, "raster"), codes[:, :-1])


@pytest.mark.parametrize(
    ("config", "scales", "num_places"),
    [
        (VARConfig(depth=4, width=128), (1, 2, 3, 4), 30 - 16),
        (VARConfig(depth=16), OFFICIAL_SCALES[256], 680 - 256),
    ],
    ids=["digits", "d16"],
)
def test_both_orders_have_the_same_parameters_within_one_percent(config, scales, num_places):
    with shapes_only():
        var = VAR(config, TokenizerConfig(scales=scales), 10)
        tokenizer = TokenizerConfig(scales=scales[-1:])
        raster = VAR(replace(config, order="raster"), tokenizer, 10)
    assert count(raster) == pytest.approx(count(var), rel=0.01)
    # They differ in the tables of places and levels, and in nothing else.
    num_rows = num_places + len(scales) - 1
    assert count(var) - count(raster) == num_rows * config.resolved_width


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_causal_kernels_masks_and_flex_agree_to_the_gradients(make_raster):
    block, steps = make_raster().layers[0], RasterScan(SIDE)
    x, m = torch.randn(2, NUM_TOKENS, 32), torch.randn(2, 32)
    outcomes = []
    for plan in (plan_attention(steps, "dense"), plan_attention(steps, "segmented")):
        block.zero_grad()
        out = block(x, m, plan)
        out.square().sum().backward()
        outcomes.append((out, block.attention.qkv.weight.grad.clone()))
    for ours, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        found = block(x, m, flex_plan(steps, CPU))
    torch.testing.assert_close(found, outcomes[0][0], atol=1e-4, rtol=1e-4)


def test_long_scans_are_left_to_the_causal_kernels():
    assert resolve_backend(RasterScan(64), "auto", CUDA) == "segmented"
    plan = plan_attention(RasterScan(64))
    assert plan.is_causal
    assert plan.mask is None


def test_a_raster_scan_of_several_scales_is_refused_with_the_way_out(make_var, make_tokenizer):
    with pytest.raises(UserError, match=r"scales \[1, 2, 4\].*\[4\].*next_scale"):
        make_var(scales=(1, 2, 4), order="raster")
    with pytest.raises(UserError, match="single token map"):
        make_tokenizer().teacher_inputs(torch.zeros(1, 21, dtype=torch.long), "raster")
    with pytest.raises(UserError, match="next_scale or raster"):
        VARConfig(order="spiral")


def test_one_scale_in_next_scale_order_is_drawn_at_once(make_var):
    var = make_var(scales=(SIDE,))
    assert var.steps == var.scales == Scales((SIDE,))
    assert var.begin(LABELS).step == 0
    assert var.advance(var.begin(LABELS)).shape == (3, NUM_TOKENS, 24)


def test_inputs_of_the_other_order_are_refused_by_name(make_raster):
    with pytest.raises(UserError, match="order raster"):
        make_raster()(LABELS, torch.zeros(3, 0, 8))


def test_the_order_is_written_and_read_and_older_folders_mean_next_scale(
    make_raster, make_var, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer(scales=(SIDE,))
    for name, var in (("raster", make_raster()), ("older", make_var(scales=(SIDE,)))):
        save_var(var, tokenizer, tmp_path / name)
    loaded = load_var(tmp_path / "raster").var
    assert loaded.config.order == "raster"
    assert loaded.steps == RasterScan(SIDE)
    path = tmp_path / "older" / "config.json"
    config = json.loads(path.read_text())
    assert config["var"].pop("order") == "next_scale"
    path.write_text(json.dumps(config))
    assert load_var(tmp_path / "older").var.config.order == "next_scale"
