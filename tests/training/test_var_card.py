"""The start card of stage 2 says what follows from what, as training will really do it."""

import pytest

from varlit.callbacks.progress import Progress
from varlit.models.config import VARConfig
from varlit.ops.costs import ASSUMED_SHARE, BF16_PEAK_TFLOPS
from varlit.training.optim import OptimConfig
from varlit.training.var_card import compute_line, derived_lines

pytestmark = pytest.mark.filterwarnings("ignore")


def test_shape_follows_from_depth_and_rate_from_the_batch():
    optim = OptimConfig(lr=8e-5, warmup=0.02, final_lr=0.01, weight_decay_end=0.08)
    lines = derived_lines(VARConfig(depth=30), optim, batch=1024, steps=10_000)
    assert lines["shape"] == "depth 30 -> width 1920, 30 heads, drop path 0.125"
    assert lines["rate"] == (
        "peak 0.00032 = 8e-05 x 1024 / 256, warm-up 200 steps, then linear to 3.2e-06; weight "
        "decay 0.05 to 0.08"
    )


def test_hours_are_told_where_the_card_is_known():
    flops, num_images = 0.9e12, 4_000_000
    seconds = flops * num_images / (8 * BF16_PEAK_TFLOPS["H100"] * 1e12 * ASSUMED_SHARE)
    told = compute_line(flops, num_images, "NVIDIA H100 80GB HBM3", num_devices=8)
    hours = f"{seconds / 3600:.3g} h at 40% of the data sheet (assumed)"
    assert told == f"900 GFLOPs to train on an image; {hours}"
    assert compute_line(5.65e12, 1, "", num_devices=1) == "5.65 TFLOPs to train on an image"


def test_a_training_says_its_rate_and_then_has_it(make_var_module, make_trainer, tokens, capsys):
    module = make_var_module(optim={"lr": 0.02, "warmup": 0.0, "schedule": "constant"})
    make_trainer(Progress(every_n_steps=1), max_steps=2).fit(module, tokens)
    rate = module.trainer.optimizers[0].param_groups[0]["lr"]
    told = capsys.readouterr().out
    assert f"peak {rate:.3g} = 0.02 x 4 / 256, warm-up 0 steps, then constant; weight" in told
    assert "depth 2 -> width 32, 4 heads, drop path 0.2" in told


def test_frozen_weights_need_a_third_less(make_var_module):
    module = make_var_module()
    whole = module.training_flops_per_image
    module.network.requires_grad_(False)
    assert module.training_flops_per_image == pytest.approx(whole * 2 / 3)
