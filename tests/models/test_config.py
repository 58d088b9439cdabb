import json

import pytest

from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig


@pytest.mark.parametrize(
    "config",
    [TokenizerConfig(channels=64, scales=(1, 4)), VARConfig(depth=3, shared_adaln=True)],
)
def test_a_config_survives_json(config):
    plain = json.loads(json.dumps(config.to_dict()))
    assert type(config).of(plain) == config
    assert type(config).of(config) is config


def test_lists_become_tuples_so_that_configs_compare():
    assert TokenizerConfig(scales=[1, 16]) == TokenizerConfig(scales=(1, 16))
    assert hash(TokenizerConfig(channel_multipliers=[1, 2])) is not None


def test_damaged_fields_are_named():
    with pytest.raises(UserError, match="TokenizerConfig"):
        TokenizerConfig.of({"scales": 5})
    with pytest.raises(UserError, match="made of fields by name; got 5"):
        TokenizerConfig.of(5)


def test_an_unknown_field_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no field `depht`; did you mean `depth`\?"):
        VARConfig.of({"depht": 3})
    with pytest.raises(UserError, match=r"no field `zzz`; known: \['channel_multipliers'"):
        TokenizerConfig.of({"zzz": 3})


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"channels": 40}, "multiple of norm_groups 32.*Try 32"),
        ({"channels": 0}, "multiple of norm_groups 32.*Try 32"),
        ({"codebook_size": 1}, "at least 2 codes"),
        ({"codebook_dim": 0}, "dimension 1"),
        ({"scales": (2, 1)}, r"grow.*\[1,2,3,4\]"),
        ({"channel_multipliers": ()}, "a positive number for each level"),
        ({"num_phi": -1}, "num_phi must be at least 0"),
        ({"dropout": 2.0}, r"dropout must lie in 0\.\.1"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused(fields, remedy):
    with pytest.raises(UserError, match=remedy):
        TokenizerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"depth": 0}, "at least 1"),
        ({"width": 100, "num_heads": 3}, "divisor"),
        ({"class_dropout": 2.0}, r"class_dropout must lie in 0\.\.1"),
        ({"drop_path": 1.0}, "drop_path must lie in .*1 excluded"),
        ({"mlp_ratio": 0.0}, "mlp_ratio positive"),
    ],
)
def test_a_transformer_that_cannot_be_built_is_refused(fields, remedy):
    with pytest.raises(UserError, match=remedy):
        VARConfig(**fields)


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_depth_is_the_one_dial(depth):
    config = VARConfig(depth=depth)
    assert (config.resolved_width, config.resolved_heads, config.head_dim) == (
        64 * depth,
        depth,
        64,
    )
    assert config.resolved_drop_path == pytest.approx(0.1 * depth / 24)
    assert VARConfig(depth=depth, drop_path=0.0).resolved_drop_path == 0.0


def test_the_image_size_follows_from_scales_and_levels():
    assert TokenizerConfig().image_size == 256
    small = TokenizerConfig(channel_multipliers=(1, 1), scales=(1, 4))
    assert (small.stride, small.image_size) == (2, 8)
    small.check_image_size(8)


def test_a_wrong_image_size_is_refused_with_scales_that_would_fit():
    with pytest.raises(UserError, match=r"no multiple of .* stride 16; take 256 px"):
        TokenizerConfig().check_image_size(250)
    with pytest.raises(UserError, match=r"end at 32 .*\[1,2,3,4,6,9,13,18,24,32\]"):
        TokenizerConfig().check_image_size(512)


@pytest.mark.parametrize("side", [1, 2, 7, 16, 20, 32, 48, 64])
def test_the_suggested_scales_do_fit(side):
    config = TokenizerConfig(scales=(*range(1, 91), 99))
    with pytest.raises(UserError) as refused:
        config.check_image_size(side * 16)
    suggested = json.loads(str(refused.value).split("scales ")[-1])
    TokenizerConfig(scales=suggested).check_image_size(side * 16)
