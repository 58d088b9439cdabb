import dataclasses
import math

import pytest
import torch

from varlit.models.blocks import (
    Attention,
    Block,
    DropPath,
    KeyValueCache,
    Modulation,
    modulate,
)
from varlit.models.config import VARConfig

CONFIG = VARConfig(depth=2, width=32, num_heads=4)


def test_modulation_takes_its_chunks_in_the_official_order():
    chunks = torch.randn(3, 6, 5)
    m = Modulation.from_chunks(chunks)
    names = [field.name for field in dataclasses.fields(Modulation)]
    assert names == [
        *("gate_attention", "gate_mlp", "scale_attention", "scale_mlp"),
        *("shift_attention", "shift_mlp"),
    ]
    for i, name in enumerate(names):
        assert torch.equal(getattr(m, name), chunks[:, i : i + 1])


def test_modulate_norms_without_parameters_then_scales_and_shifts():
    x, scale, shift = torch.randn(2, 4, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    variance = x.var(dim=-1, correction=0, keepdim=True)
    normed = (x - x.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(modulate(x, 1 + scale, shift), normed * (1 + scale) + shift)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    dropped = layer(x)
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(per_sample.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert layer.eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_keeps_the_type_and_does_not_round_its_factor():
    x = torch.ones(4000, 1, 64, dtype=torch.bfloat16)
    x[..., ::2] = 1.0078125  # the next number; times 1 / 0.93 it rounds the other way
    dropped = DropPath(0.07)(x)
    assert dropped.dtype == torch.bfloat16
    expected = (x[:1].float() / 0.93).bfloat16()
    assert torch.equal(dropped[dropped[:, 0, 0] > 0].unique(dim=0), expected)


def plain_attention(layer, x, mask, scale, normalise):
    q_bias, v_bias = layer.q_bias, layer.v_bias
    q, k, v = (x @ layer.qkv.weight.T).chunk(3, dim=-1)
    q, v = q + q_bias, v + v_bias
    q, k, v = (t.unflatten(2, (4, 8)).transpose(1, 2) for t in (q, k, v))
    if normalise:
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    weights = (q @ k.transpose(-2, -1) * scale).masked_fill(~mask, -torch.inf).softmax(-1)
    return layer.projection((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("normalise", [True, False])
def test_attention_is_softmax_attention_with_the_official_scales(normalise):
    layer = Attention(VARConfig(depth=2, width=32, num_heads=4, qk_l2_norm=normalise))
    torch.nn.init.normal_(layer.q_bias)
    torch.nn.init.normal_(layer.v_bias)
    x, mask = torch.randn(2, 6, 32), torch.ones(6, 6, dtype=torch.bool).tril()
    # With unit vectors a learned scale, 4 at first; without, 0.25 / sqrt(head_dim).
    scale = 4.0 if normalise else 0.25 / math.sqrt(8)
    expected = plain_attention(layer, x, mask, scale, normalise)
    torch.testing.assert_close(layer(x, mask), expected, atol=1e-5, rtol=1e-4)


def test_the_learned_scale_of_a_head_is_capped_at_100():
    layer, x = Attention(CONFIG), torch.randn(1, 5, 32)
    with torch.no_grad():
        layer.log_scale.fill_(math.log(100))
        at_cap = layer(x)
        layer.log_scale.fill_(50.0)
    assert torch.equal(layer(x), at_cap)


def test_keys_carry_no_bias():
    names = {name for name, _ in Attention(CONFIG).named_parameters()}
    assert {"q_bias", "v_bias", "qkv.weight"} <= names
    assert not any("k_bias" in name or name == "qkv.bias" for name in names)


def test_the_cache_is_written_in_place_and_returns_what_is_filled():
    cache = KeyValueCache(torch.empty(1, 2, 5, 3), torch.empty(1, 2, 5, 3))
    keys, values = torch.randn(2, 1, 2, 5, 3)
    for start, end in ((0, 1), (1, 4), (4, 5)):
        k, v = cache.append(keys[:, :, start:end], values[:, :, start:end])
        assert torch.equal(k, keys[:, :, :end])
        assert torch.equal(v, values[:, :, :end])
        assert k.data_ptr() == cache.keys.data_ptr(), "no copy"


def test_closed_gates_silence_a_block():
    block = Block(CONFIG, drop_path=0.0)
    torch.nn.init.zeros_(block.adaln.weight)
    torch.nn.init.zeros_(block.adaln.bias)
    x = torch.randn(2, 3, 32)
    assert torch.equal(block(x, block.modulation(torch.randn(2, 32))), x)


def test_shared_adaln_adds_an_offset_of_the_block():
    block = Block(VARConfig(depth=2, width=32, num_heads=4, shared_adaln=True), drop_path=0.0)
    shared = torch.randn(2, 6, 32)
    m = block.modulation(shared)
    torch.testing.assert_close(m.gate_mlp[:, 0], shared[:, 1] + block.adaln_offset[0, 1])


def test_a_condition_is_read_as_its_modulation():
    block = Block(CONFIG, drop_path=0.0)
    x, condition = torch.randn(2, 3, 32), torch.randn(2, 32)
    assert torch.equal(block(x, condition), block(x, block.modulation(condition)))


def test_stochastic_depth_closes_both_gates_each_by_itself_while_training():
    block = Block(CONFIG, drop_path=0.25)
    torch.nn.init.ones_(block.adaln.bias)
    torch.nn.init.zeros_(block.adaln.weight)
    condition = torch.randn(4000, 32)
    m = block.modulation(condition)
    for gate in (m.gate_attention, m.gate_mlp):
        assert sorted(gate.unique().tolist()) == pytest.approx([0, 1 / 0.75])
        assert (gate == 0).all(dim=2).float().mean().item() == pytest.approx(0.25, abs=0.04)
    both = ((m.gate_attention == 0) & (m.gate_mlp == 0))[:, 0, 0].float().mean().item()
    assert both == pytest.approx(0.25**2, abs=0.02), "independent"
    open_gates = block.eval().modulation(condition)
    assert (open_gates.gate_attention == 1).all()
    assert (open_gates.gate_mlp == 1).all()


def test_a_closed_gate_leaves_the_image_as_it_was():
    block = Block(CONFIG, drop_path=0.5)
    x, condition = torch.randn(64, 3, 32), torch.randn(64, 32)
    m = block.modulation(condition)
    closed = ((m.gate_attention == 0) & (m.gate_mlp == 0))[:, 0, 0]
    assert closed.any()
    assert not closed.all()
    assert torch.equal(closed, (block(x, m) == x).all(dim=2).all(dim=1))
