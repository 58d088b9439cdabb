"""Parity that everybody can check: what a small committed fixture proves."""

import pytest
import torch

from varlit.checkpoints.official import official_tokenizer_name, official_var_name
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.filtering import draw, filter_logits
from varlit.training.optim import OptimConfig, build_adamw, set_schedule

# Official names of learning-rate schedules and how ours say the same.
SCHEDULES = {
    "cos": {"schedule": "cosine"},
    "lin": {"schedule": "linear", "flat": 0.15},
    "lin0": {"schedule": "linear"},
    "lin00": {"schedule": "linear", "flat": 0.0},
    "lin0.8": {"schedule": "piecewise", "knee": 0.8},
    "exp": {"schedule": "exponential", "flat": 0.15},
}


@pytest.fixture(scope="module")
def quantizer(official):
    c = official["config"]
    config = TokenizerConfig(
        codebook_size=c["V"], codebook_dim=c["Cvae"], scales=tuple(c["patch_nums"])
    )
    network = MultiScaleQuantizer(config)
    names = {
        name: official_tokenizer_name(f"quantizer.{name}", config) for name in network.state_dict()
    }
    assert set(names.values()) == set(official["quantizer"])
    network.load_state_dict({n: official["quantizer"][there] for n, there in names.items()})
    return network


def test_phi_serves_the_scales_as_in_the_official_code(quantizer, official):
    assert list(quantizer.phi_index) == official["phi_index"] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_latent_maps_become_the_official_tokens_exactly(quantizer, official):
    assert torch.equal(quantizer.encode(official["features"]), official["tokens"].long())


def test_official_tokens_decode_to_the_official_latent_map(quantizer, official):
    found = quantizer.decode(official["tokens"].long())
    torch.testing.assert_close(found, official["f_hat"], atol=1e-5, rtol=0)


def test_the_transformer_is_fed_the_official_inputs(quantizer, official):
    found = quantizer.teacher_inputs(official["tokens"].long())
    torch.testing.assert_close(found, official["teacher_inputs"], atol=1e-5, rtol=0)


def settings_of(key):
    top_k, top_p = key.split("_")
    return {"top_k": int(top_k[1:]), "top_p": float(top_p[1:])}


def test_filters_and_seeded_draws_are_the_official_ones(official):
    assert len(official["filter_out"]) == 6
    for key, out in official["filter_out"].items():
        masked = filter_logits(official["filter_in"], **settings_of(key))
        assert torch.equal(masked, out["masked"]), key
        drawn = draw(masked, torch.Generator().manual_seed(7))
        assert torch.equal(drawn, out["idx_seed7"][..., 0]), key


@pytest.mark.parametrize(
    "name",
    ["d16_lin0_wpe0.1", "d30_lin0_wpe0.01_wd0.05to0.08", "cos", "lin", "lin00", "lin0.8", "exp"],
)
def test_rate_and_decay_follow_the_official_schedules(official, name):
    schedule = official["schedules"][name]
    args = schedule["args"]
    config = OptimConfig(
        lr=args["peak_lr"],
        warmup=args["wp_it"] / args["max_it"],
        warmup_start=args["wp0"],
        final_lr=args["wpe"],
        weight_decay=args["wd"],
        weight_decay_end=args["wde"],
        **SCHEDULES[args["sche"]],
    )
    optimizer = build_adamw(torch.nn.Linear(1, 1), config)
    assert len(schedule["lr_wd"]) == args["max_it"] == 1000
    for step, expected in enumerate(schedule["lr_wd"].tolist()):
        set_schedule(optimizer, config, step, args["max_it"], batch_size=256)
        group = optimizer.param_groups[0]
        assert [group["lr"], group["weight_decay"]] == pytest.approx(expected, rel=1e-9), step


def test_no_official_schedule_is_left_out(official):
    kinds = {schedule["args"]["sche"] for schedule in official["schedules"].values()}
    assert (len(official["schedules"]), kinds) == (7, set(SCHEDULES))


@pytest.mark.parametrize(
    ("name", "config"),
    [("d16", VARConfig(depth=16)), ("d2_saln", VARConfig(depth=2, shared_adaln=True))],
)
def test_weight_decay_falls_on_the_official_tensors(official, name, config):
    with torch.device("meta"):
        var = VAR(config, TokenizerConfig(), 1000)
    names = {parameter: official_var_name(n) for n, parameter in var.named_parameters()}
    groups = build_adamw(var, OptimConfig()).param_groups
    decay, rest = ({names[p] for p in group["params"]} for group in groups)
    assert decay == set(official["groups"][name]["decay"])
    assert rest == set(official["groups"][name]["no_decay"])


def test_a_new_transformer_is_spread_as_the_official_one(official):
    torch.manual_seed(0)
    c = official["config"]
    tokenizer = TokenizerConfig(codebook_size=c["V"], codebook_dim=c["Cvae"])
    var = VAR(VARConfig(depth=2, shared_adaln=True), tokenizer, c["num_classes"])
    ours = {official_var_name(name): value for name, value in var.state_dict().items()}
    compared = 0
    for name, expected in official["initial"].items():
        if list(ours[name].squeeze().shape) != [s for s in expected["shape"] if s != 1]:
            continue  # of another vocabulary
        compared += 1
        std = ours[name].std(correction=0).item()
        assert std == pytest.approx(expected["std"], rel=0.15, abs=1e-8), name
    assert compared >= len(official["initial"]) - 4


@pytest.mark.parametrize("kind", ["tokenizer", "var"])
def test_full_size_models_have_the_official_names_and_shapes(official, kind):
    config = TokenizerConfig()
    with torch.device("meta"):
        network = VQVAE(config) if kind == "tokenizer" else VAR(VARConfig(depth=16), config, 1000)
    rename = (
        (lambda n: official_tokenizer_name(n, config)) if kind == "tokenizer" else official_var_name
    )
    ours = {rename(name): list(value.shape) for name, value in network.state_dict().items()}
    assert ours == official["shapes"][kind]
