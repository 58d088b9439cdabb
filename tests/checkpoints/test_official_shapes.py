"""Shapes alone tell the model; the networks here live on the meta device."""

import re

import pytest
import torch

from varlit.checkpoints.official_names import official_tokenizer_name, official_var_name
from varlit.checkpoints.official_shapes import (
    HIT_STATISTIC,
    kind_of,
    recognise_tokenizer,
    recognise_var,
)
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.scales import OFFICIAL_SCALES, Scales

OFFICIAL = {
    "d16": (VARConfig(depth=16), 256, 310_283_520),
    "d20": (VARConfig(depth=20), 256, 600_917_136),
    "d24": (VARConfig(depth=24), 256, 1_033_399_360),
    "d30": (VARConfig(depth=30), 256, 2_010_020_356),
    "d36-s": (VARConfig(depth=36, shared_adaln=True), 512, 2_353_893_904),
}


def var_weights(config, scales=TokenizerConfig.scales, num_classes=1000):
    with torch.device("meta"):
        var = VAR(config, TokenizerConfig(scales=scales), num_classes)
    return {
        official_var_name(name): tensor.unsqueeze(0) if "adaln_offset" in name else tensor
        for name, tensor in var.state_dict().items()
    }


def tokenizer_weights(**fields):
    config = TokenizerConfig(**fields)
    with torch.device("meta"):
        weights = VQVAE(config).state_dict()
        hits = torch.zeros(len(config.scales), config.codebook_size)
    named = {official_tokenizer_name(name, config): t for name, t in weights.items()}
    return named | {HIT_STATISTIC: hits}, config


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_var_is_recognised_with_its_parameter_count(name):
    config, px, count = OFFICIAL[name]
    weights = var_weights(config, OFFICIAL_SCALES[px])
    assert sum(tensor.numel() for tensor in weights.values()) == count
    shape = recognise_var(weights, "file")
    assert kind_of(weights, "file") == "var"
    assert shape.config == config
    assert shape.num_classes == 1000
    assert shape.tokenizer == TokenizerConfig(scales=OFFICIAL_SCALES[px])
    assert shape.tokenizer.image_size == px


def test_the_official_tokenizer_is_recognised_with_its_parameter_count():
    weights, config = tokenizer_weights()
    count = sum(t.numel() for name, t in weights.items() if name != HIT_STATISTIC)
    assert count == 108_948_355
    assert kind_of(weights, "file") == "tokenizer"
    assert recognise_tokenizer(weights, "file").config == config == TokenizerConfig()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_phi": 1},
        {"num_phi": 0},
        {"num_phi": 2, "scales": OFFICIAL_SCALES[1024]},
        {"num_phi": 0, "scales": OFFICIAL_SCALES[1024]},
        {"channels": 32, "channel_multipliers": (1, 3, 2), "num_res_blocks": 3},
        {"channel_multipliers": (1,), "codebook_size": 7, "codebook_dim": 5},
    ],
    ids=str,
)
def test_variants_of_the_tokenizer_are_recognised(fields):
    weights, config = tokenizer_weights(**fields)
    assert recognise_tokenizer(weights, "file").config == config


@pytest.mark.parametrize(
    "config",
    [
        VARConfig(depth=3, width=128, num_heads=4),
        VARConfig(depth=2, width=192, num_heads=3, qk_l2_norm=False),
        VARConfig(depth=2, qk_l2_norm=False, shared_adaln=True, mlp_ratio=2.5),
    ],
    ids=["odd heads", "no norm", "narrow mlp"],
)
def test_variants_of_the_var_are_recognised(config):
    assert recognise_var(var_weights(config, num_classes=3), "file").config == config


def test_heads_that_no_weight_tells_are_not_guessed():
    config = VARConfig(depth=2, width=32, num_heads=4, qk_l2_norm=False)
    with pytest.raises(UserError, match="do not tell the heads"):
        recognise_var(var_weights(config), "file")


def test_levels_in_the_file_tell_a_list_that_is_not_official():
    scales = Scales((1, 3, 5))
    weights = var_weights(VARConfig(depth=1), scales.sides)
    with pytest.raises(UserError, match=r"35 positions on 3 scales.*--scales"):
        recognise_var(weights, "file")
    assert recognise_var(weights, "file", (1, 3, 5)).tokenizer.scales == (1, 3, 5)
    weights["lvl_1L"] = scales.levels()[None]
    assert recognise_var(weights, "file").tokenizer.scales == (1, 3, 5)


def test_scales_that_do_not_fit_the_positions_are_refused():
    with pytest.raises(UserError, match=r"680 positions on 10 scales; the scales 1,2 make 5 on 2"):
        recognise_var(var_weights(VARConfig(depth=1)), "file", (1, 2))


def test_scales_of_a_tokenizer_can_be_changed_and_that_is_said():
    weights, _ = tokenizer_weights()
    same = recognise_tokenizer(weights, "file", OFFICIAL_SCALES[512])
    assert (same.config.scales, same.notes) == (OFFICIAL_SCALES[512], ())
    other = recognise_tokenizer(weights, "file", (1, 2, 4))
    assert other.config.scales == (1, 2, 4)
    assert "made with 10 scales" in other.notes[0]


def test_a_tokenizer_that_does_not_tell_its_scales_says_what_was_taken():
    weights, _ = tokenizer_weights()
    del weights[HIT_STATISTIC]
    shape = recognise_tokenizer(weights, "file")
    assert shape.config.scales == OFFICIAL_SCALES[256]
    assert "256 px" in shape.notes[0]


def test_an_unknown_number_of_scales_asks_for_them():
    weights, _ = tokenizer_weights(scales=(1, 2, 4))
    with pytest.raises(UserError, match=r"has 3 scales.*--scales"):
        recognise_tokenizer(weights, "file")


def test_own_phis_bind_the_number_of_scales():
    weights, _ = tokenizer_weights(num_phi=0)
    with pytest.raises(UserError, match="each of 10 scales"):
        recognise_tokenizer(weights, "file", (1, 2))


@pytest.mark.parametrize("name", ["pos_1LC", "head.weight", "class_emb.weight"])
def test_a_weight_without_which_the_shape_is_unknown_is_named(name):
    weights = var_weights(VARConfig(depth=1))
    del weights[name]
    with pytest.raises(UserError, match=rf"lacks `{re.escape(name)}`"):
        recognise_var(weights, "file")


def test_something_else_is_neither():
    with pytest.raises(UserError, match=r"neither.*it holds fc\.weight"):
        kind_of({"fc.weight": torch.zeros(1)}, "file")


@pytest.mark.parametrize(
    "levels",
    [
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 680, dtype=torch.bool),
        torch.full((1, 680), 10**15),
        torch.full((1, 680), -1),
    ],
    ids=["empty", "bool", "huge", "negative"],
)
def test_levels_that_say_nothing_are_not_believed(levels):
    weights = var_weights(VARConfig(depth=1)) | {"lvl_1L": levels}
    assert recognise_var(weights, "file").tokenizer.scales == OFFICIAL_SCALES[256]


def test_a_weight_without_numbers_is_refused():
    weights = var_weights(VARConfig(depth=1)) | {"head.weight": torch.zeros(0, 0)}
    with pytest.raises(UserError, match=r"`head\.weight` has shape \[0, 0\]"):
        recognise_var(weights, "file")
