import jsonargparse
import pytest

from varlit.errors import UserError
from varlit.losses.config import TokenizerLossConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l1_weight": -1.0}, "l1_weight must not be negative"),
        ({"l2_weight": float("nan")}, "l2_weight"),
        ({"disc_start": 250_001.0}, "share of training"),
        ({"disc_blur_fade": 2.0}, "disc_blur_fade"),
        ({"adaptive_min": 2.0, "adaptive_max": 1.0}, "above adaptive_max"),
        ({"lecam_decay": 1.0}, "below 1"),
        ({"augment_probability": 1.5}, "augment_probability"),
        ({"disc_augment": ("colour",)}, "translation, color, cutout; got colour"),
        ({"r1_every_n_steps": 0}, "r1_weight 0"),
    ],
)
def test_a_setting_without_sense_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TokenizerLossConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"perceptual_weight": 0.0, "perceptual_weights": "trunk.pth"}, "perceptual_weights is"),
        (
            {"disc_weight": 0.0, "disc_start": 0.5, "r1_weight": 1.0},
            "disc_start, loss.r1_weight are",
        ),
        ({"adaptive_weight": False, "adaptive_min": 0.0}, "adaptive_min is"),
        ({"augment_probability": 0.5}, "augment_probability is"),
        ({"disc_augment": ("color",), "augment_cutout": 0.5}, "augment_cutout is"),
        ({"lecam_weight": 0.0, "lecam_decay": 0.9}, "lecam_decay is"),
        ({"entropy_temperature": 0.1}, "entropy_temperature is"),
        ({"r1_every_n_steps": 8}, "r1_every_n_steps is"),
    ],
)
def test_a_setting_without_effect_warns(fields, message):
    with pytest.warns(UserWarning, match=f"{message} ignored, because"):
        TokenizerLossConfig(**fields)


@pytest.mark.filterwarnings("error")
def test_defaults_and_switching_a_part_off_do_not_warn():
    TokenizerLossConfig()
    TokenizerLossConfig(perceptual_weight=0.0, disc_weight=0.0)
    TokenizerLossConfig(consistency_weight=8.0, augment_cutout=0.3)


def test_the_config_travels_as_plain_data_and_over_the_command_line():
    config = TokenizerLossConfig(disc_loss="nonsaturating", disc_augment=("color", "cutout"))
    assert TokenizerLossConfig.of(config.to_dict()) == config
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=TokenizerLossConfig)
    typed = ["--loss.disc_loss=nonsaturating", "--loss.disc_augment=[color,cutout]"]
    assert parser.instantiate(parser.parse_args(typed)).loss == config
