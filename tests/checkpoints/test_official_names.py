"""Names alone; that the weights mean the same is what tests/parity proves."""

import re
from pathlib import Path

import pytest
import torch

from varlit.checkpoints.official_names import (
    in_official_order,
    official_tokenizer_name,
    official_var_name,
)
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE


def var_names(**fields):
    with torch.device("meta"):
        var = VAR(VARConfig(**({"depth": 2, "width": 32} | fields)), TokenizerConfig(), 10)
    return {name: official_var_name(name) for name in var.state_dict()}


def tokenizer_names(**fields):
    config = TokenizerConfig(**fields)
    with torch.device("meta"):
        tokenizer = VQVAE(config)
    return {name: official_tokenizer_name(name, config) for name in tokenizer.state_dict()}


@pytest.mark.parametrize("fields", [{}, {"shared_adaln": True}, {"qk_l2_norm": False}], ids=str)
def test_names_of_a_var_stay_apart(fields):
    names = var_names(**fields)
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_phi": 0}, {"num_phi": 1}, {"channel_multipliers": (1, 2), "num_res_blocks": 1}],
    ids=str,
)
def test_names_of_a_tokenizer_stay_apart(fields):
    names = tokenizer_names(**fields)
    assert len(set(names.values())) == len(names)


def test_variants_of_the_var_have_the_official_parts():
    shared = set(var_names(shared_adaln=True).values())
    assert {"shared_ada_lin.1.weight", "blocks.1.ada_gss"} <= shared
    assert not any(".ada_lin." in name for name in shared if name.startswith("blocks"))
    plain = set(var_names(qk_l2_norm=False).values())
    assert not any("scale_mul" in name for name in plain)


@pytest.mark.parametrize(
    ("num_phi", "pattern", "count"),
    [
        (4, r"quantize\.quant_resi\.qresi_ls\.[0-3]\.(weight|bias)", 8),
        (1, r"quantize\.quant_resi\.qresi\.(weight|bias)", 2),
        (0, r"quantize\.quant_resi\.[0-9]\.(weight|bias)", 20),
    ],
)
def test_the_three_kinds_of_phi_have_their_official_places(num_phi, pattern, count):
    names = [n for n in tokenizer_names(num_phi=num_phi).values() if "quant_resi" in n]
    assert len(names) == count
    assert all(re.fullmatch(pattern, name) for name in names)


def test_the_decoder_counts_its_levels_from_the_highest_resolution():
    names = tokenizer_names()
    assert names["decoder.levels.0.0.conv1.weight"] == "decoder.up.4.block.0.conv1.weight"
    assert names["decoder.levels.0.1.qkv.weight"] == "decoder.up.4.attn.0.qkv.weight"
    assert names["decoder.upsamples.0.conv.bias"] == "decoder.up.4.upsample.conv.bias"
    assert names["encoder.levels.4.3.projection.bias"] == "encoder.down.4.attn.1.proj_out.bias"
    assert names["encoder.levels.2.0.shortcut.bias"] == "encoder.down.2.block.0.nin_shortcut.bias"


def test_official_order_does_not_depend_on_ours():
    path = Path(__file__).parents[1] / "fixtures" / "official.pt"
    shapes = torch.load(path, weights_only=True)["shapes"]
    for names in (shapes["tokenizer"], shapes["var"]):
        # What stands in one block, such as norm1 and conv1, keeps our order, which is the same.
        shuffled = sorted(names, key=lambda name: name.split(".")[:-2][:3], reverse=True)
        assert in_official_order(shuffled) == list(names)
