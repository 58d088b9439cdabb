import math

import pytest
import torch

from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR

WIDTH, DEPTH = 256, 3
STD = math.sqrt(1 / (3 * WIDTH))


def build(**changes):
    torch.manual_seed(0)
    fields = {"depth": DEPTH, "width": WIDTH, "num_heads": 4, "gamma_init": 1e-3}
    return VAR(VARConfig(**(fields | changes)), TokenizerConfig(codebook_size=512), 10)


@pytest.fixture(scope="module")
def var():
    return build()


def std_of(tensor):
    return tensor.detach().std().item()


def test_matrices_and_embeddings_have_the_deviation_of_the_width(var):
    block = var.blocks[1]
    for weight in (
        *(var.position, var.class_embedding.weight, var.level_embedding.weight),
        *(var.start_position, var.input_projection.weight),
        *(block.attention.qkv.weight, block.mlp[0].weight),
    ):
        assert std_of(weight) == pytest.approx(STD, rel=0.1)


def test_residual_outputs_are_scaled_down_by_the_depth(var):
    for block in var.blocks:
        for layer in (block.attention.projection, block.mlp[-1]):
            assert std_of(layer.weight) == pytest.approx(STD / math.sqrt(2 * DEPTH), rel=0.05)


def test_head_and_its_norm_start_small(var):
    assert std_of(var.head.weight) == pytest.approx(0.02 * STD, rel=0.05)
    assert std_of(var.head_adaln.weight) == pytest.approx(0.5 * STD, rel=0.05)


@pytest.mark.parametrize("gamma", [1e-3, 1e-5])
def test_gates_start_nearly_closed(gamma):
    for block in build(gamma_init=gamma).blocks:
        gates, rest = block.adaln.weight.unflatten(0, (6, -1)).split((2, 4))
        assert std_of(gates) == pytest.approx(gamma * STD, rel=0.05)
        assert std_of(rest) == pytest.approx(0.5 * STD, rel=0.05)


def test_shared_adaln_scales_its_offsets_alike():
    var = build(shared_adaln=True)
    assert std_of(var.shared_adaln.weight) == pytest.approx(STD, rel=0.05)
    offsets = torch.cat([block.adaln_offset[0] for block in var.blocks], dim=1)
    std = 1 / math.sqrt(WIDTH)
    assert std_of(offsets[:2]) == pytest.approx(1e-3 * std, rel=0.1)
    assert std_of(offsets[2:]) == pytest.approx(0.5 * std, rel=0.1)


def test_biases_start_at_zero_and_scales_of_heads_at_four(var):
    for name, parameter in var.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        if name.endswith("log_scale"):
            torch.testing.assert_close(parameter.exp(), torch.full_like(parameter, 4.0))


def test_torchs_own_layers_are_left_as_they_were():
    build()
    fresh = torch.nn.Linear(100, 200)
    assert fresh.bias.abs().max() > 0
    assert std_of(fresh.weight) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
