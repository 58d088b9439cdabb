import warnings

import pytest
import torch

from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.schedules import SCHEDULE_KINDS, lr_factor
from varlit.training.optim import (
    OptimConfig,
    TokenizerOptimConfig,
    build_adamw,
    build_players,
    gradient_norm,
    schedule_players,
    set_schedule,
)


def groups_by_name(network, **settings):
    decay, rest = build_adamw(network, OptimConfig(**settings)).param_groups
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [{names[parameter] for parameter in group["params"]} for group in (decay, rest)]


@pytest.fixture(scope="module")
def d16():
    with torch.device("meta"):
        return VAR(VARConfig(depth=16), TokenizerConfig(), 1000)


def test_d16_has_the_official_84_decaying_and_118_other_tensors(d16):
    decay, rest = groups_by_name(d16)
    assert (len(decay), len(rest)) == (84, 118)
    assert len(decay | rest) == len(list(d16.parameters()))
    assert {"class_embedding.weight", "input_projection.weight", "head.weight"} <= decay
    assert {"position", "start_position", "level_embedding.weight"} <= rest
    assert {"blocks.0.attention.log_scale", "input_projection.bias"} <= rest


def test_only_matrices_decay_and_offsets_of_a_shared_adaln_do_not():
    with torch.device("meta"):
        var = VAR(VARConfig(depth=2, shared_adaln=True), TokenizerConfig(), 10)
    decay, rest = groups_by_name(var)
    assert "shared_adaln.weight" in decay
    assert {"blocks.0.adaln_offset", "blocks.1.adaln_offset"} <= rest


def test_the_tokenizers_codebook_does_not_decay_and_its_convolutions_do():
    with torch.device("meta"):
        tokenizer = VQVAE(TokenizerConfig(channels=32))
    decay, rest = groups_by_name(tokenizer)
    assert "quantizer.codebook.weight" in rest
    assert {"quantizer.phis.0.weight", "encoder.conv_in.weight"} <= decay
    assert all(name.endswith("weight") for name in decay)
    assert not any("norm" in name for name in decay)


def test_frozen_weights_are_left_out():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    network[0].requires_grad_(False)
    assert groups_by_name(network) == [{"1.weight"}, {"1.bias"}]


def scheduled(config, step, total_steps=100, batch_size=256, weight_decay=None):
    optimizer = build_adamw(torch.nn.Linear(2, 2), config, weight_decay)
    set_schedule(optimizer, config, step, total_steps, batch_size)
    return optimizer.param_groups


def test_the_peak_rate_is_per_256_images():
    config = OptimConfig(lr=1e-3, schedule="constant", warmup=0)
    for batch_size, rate in ((256, 1e-3), (64, 2.5e-4), (768, 3e-3)):
        assert [g["lr"] for g in scheduled(config, 5, batch_size=batch_size)] == [rate, rate]


def test_warm_up_and_end_are_shares_of_training():
    config = OptimConfig(lr=1.0, warmup=0.1, warmup_start=0.005, final_lr=0.1, schedule="cosine")
    for total_steps in (100, 1000):
        rates = [scheduled(config, s, total_steps)[0]["lr"] for s in range(total_steps)]
        assert rates[0] == pytest.approx(0.005)
        assert rates.index(max(rates)) == total_steps // 10
        assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("schedule", "fields"),
    [
        ("linear", {"knee": 0.5}),
        ("exponential", {"knee": 0.5}),
        ("cosine", {"flat": 0.1}),
        ("piecewise", {"flat": 0.1}),
        ("constant", {"final_lr": 0.5}),
    ],
)
def test_a_setting_that_the_schedule_ignores_is_named(schedule, fields):
    (name,) = fields
    with pytest.warns(UserWarning, match=f"optim.{name} is ignored: the {schedule} schedule"):
        OptimConfig(schedule=schedule, **fields)


def test_settings_that_are_read_or_left_alone_are_not_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in SCHEDULE_KINDS:
            OptimConfig(schedule=kind)
            TokenizerOptimConfig(schedule=kind)
        OptimConfig(schedule="linear", flat=0.15)
        OptimConfig(schedule="piecewise", knee=0.5, final_lr=0.0)


def test_the_shape_of_the_schedule_reaches_the_optimizer():
    common = {"lr": 1.0, "warmup": 0.0, "final_lr": 0.1}
    for fields in ({"flat": 0.5}, {"flat": 0.0}, {"schedule": "piecewise", "knee": 0.5}):
        config = OptimConfig(**common, **fields)
        shape = {name: fields[name] for name in ("flat", "knee") if name in fields}
        expected = lr_factor(config.schedule, 40, 101, final=0.1, **shape)
        assert scheduled(config, 40, 101)[0]["lr"] == pytest.approx(expected)


def test_the_schedule_is_a_function_of_the_step_alone():
    config = OptimConfig(weight_decay_end=0.1)
    optimizer = build_adamw(torch.nn.Linear(2, 2), config)
    for step in (0, 90, 40):
        set_schedule(optimizer, config, step, 100, 256)
    for group, fresh in zip(optimizer.param_groups, scheduled(config, 40), strict=True):
        assert group["lr"] == fresh["lr"]
        assert group["weight_decay"] == fresh["weight_decay"]


def test_weight_decay_moves_only_where_it_decays_and_only_when_asked_to():
    moving = OptimConfig(weight_decay=0.05, weight_decay_end=0.08)
    found = [[g["weight_decay"] for g in scheduled(moving, step)] for step in (0, 99)]
    assert found == [[0.05, 0.0], [pytest.approx(0.08), 0.0]]
    fixed = OptimConfig(weight_decay=0.05)
    assert [g["weight_decay"] for g in scheduled(fixed, 99)] == [0.05, 0.0]


def test_a_decay_of_its_own_stays_what_it_is():
    config = TokenizerOptimConfig(weight_decay=0.05, weight_decay_end=0.08)
    for step in (0, 50, 99):
        found = [g["weight_decay"] for g in scheduled(config, step, weight_decay=5e-4)]
        assert found == [5e-4, 0.0], "the discriminator's"


@pytest.mark.parametrize("share", [0.0, 0.07, 0.2, 0.28, 0.55, 0.6])
@pytest.mark.parametrize("total", [7, 100, 999])
def test_the_discriminators_own_schedule_starts_with_its_first_step(share, total):
    config = TokenizerOptimConfig(warmup=0.1, disc_lr=2e-4)
    optimizer = build_players(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), config)
    played = [step for step in range(total) if step / total >= share]
    rates = []
    for step in played:
        schedule_players(optimizer, config, step, total, 256, share, plays=True)
        rates.append(optimizer.param_groups[-1]["lr"])
    assert rates[0] == pytest.approx(2e-4 * config.warmup_start, rel=1e-6) or len(rates) < 10
    assert min(rates) > 0
    assert max(rates) <= 2e-4 * (1 + 1e-9)


def test_the_gradient_norm_is_that_of_all_gradients_together():
    network = torch.nn.Linear(3, 4)
    network(torch.randn(2, 3)).square().sum().backward()
    flat = torch.cat([p.grad.flatten() for p in network.parameters()])
    torch.testing.assert_close(gradient_norm(network.parameters()), flat.norm())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "optim.lr must be positive"),
        ({"warmup": 1.5}, r"optim.warmup must lie in 0\.\.1; got 1.5"),
        ({"final_lr": -0.1}, r"optim.final_lr must lie in 0\.\.1"),
        ({"ema_decay": 2.0}, r"optim.ema_decay must lie in 0\.\.1"),
        ({"grad_clip": -1.0}, "optim.grad_clip must not be negative"),
        ({"betas": (0.9, 1.5)}, r"optim.betas must lie in 0\.\.1"),
        ({"schedule": "cos"}, "one of cosine, linear, piecewise.*; got `cos`"),
        ({"flat": 1.0}, r"optim.flat must lie in 0\.\.1, 1 excluded"),
        ({"schedule": "piecewise", "knee": 1.0}, "optim.knee must lie between 0 and 1"),
        ({"schedule": "exponential", "final_lr": 0.0}, "never reaches optim.final_lr 0; take"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**fields)
