"""Parity of whole networks, where the reference tensors lie beside the repository."""

import pytest
import torch
from torch.nn import functional

from varlit.checkpoints.official import official_tokenizer_name, official_var_name
from varlit.generation.editing.known import known_outside
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.losses.next_scale import next_scale_loss
from varlit.training.optim import OptimConfig, build_adamw, gradient_norm, set_schedule

# The committed cuts (the other files here) prove the core of this in every check.
pytestmark = pytest.mark.slow

MODES = ["greedy_cfg1.5", "greedy_cfg0", "greedy_cfg4", "seed0_cfg1.5_k20_p0.9", "greedy_uncond"]


@torch.no_grad()
def test_images_become_the_official_tokens_exactly(tokenizer, case, tokens, close):
    close.features(tokenizer.features(case["img"]), case["f_BChw"])
    close.features(tokenizer.encoder(case["img"]), case["enc_out"])
    assert torch.equal(tokenizer.encode(case["img"]), tokens)


@torch.no_grad()
def test_the_latent_map_grows_as_the_official_one(tokenizer, case, tokens, close):
    for k, expected in enumerate(case["f_hat_per_scale"]):
        close.features(tokenizer.quantizer.decode(tokens, k + 1), expected)


def test_tokens_become_the_official_images(tokenizer, case, tokens, close):
    close.images(tokenizer.decode(tokens), case["fhat_to_img"])
    for k, expected in case["idxBl_to_img_at_scale"].items():
        close.images(tokenizer.decode_prefix(tokens, k + 1), expected)


def test_the_transformer_is_fed_the_official_inputs(tokenizer, case, tokens, close):
    close.features(tokenizer.teacher_inputs(tokens), case["var_input"])


@torch.no_grad()
def test_logits_and_losses_are_the_official_ones(make_var, case, tokens, close):
    var = make_var()
    logits = var(case["label"], case["var_input"])
    close.logits(logits, case["logits"])
    unconditional = torch.full_like(case["label"], var.num_classes)
    close.logits(var(unconditional, case["var_input"]), case["logits_uncond"])
    terms = next_scale_loss(logits, tokens, var.scales)
    close.loss(terms.loss.item(), case["loss"])
    smoothed = next_scale_loss(logits, tokens, var.scales, label_smoothing=0.1)
    close.loss(smoothed.loss.item(), case["loss_label_smooth_0.1"])
    by_scale = torch.stack([part.mean() for part in var.scales.split(case["ce_BL"])])
    torch.testing.assert_close(terms.loss_by_scale, by_scale, atol=1e-4, rtol=1e-5)


def learn(var, case, tokens):
    logits = var(case["label"], case["var_input"])
    loss = next_scale_loss(logits, tokens, var.scales).loss
    loss.backward()
    return loss.item()


def test_every_gradient_is_the_official_one(make_var, case, tokens):
    var = make_var()
    learn(var, case, tokens)
    found = {official_var_name(name): p.grad for name, p in var.named_parameters()}
    assert found.keys() == case["var_grads"].keys()
    for name, expected in case["var_grads"].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(found[name], expected, atol=1e-4 * scale, rtol=1e-3, msg=name)


def test_three_steps_of_training_end_where_the_official_ones_do(make_var, case, tokens, close):
    var, official = make_var().train(), case["train3"]
    c = official["cfg"]
    config = OptimConfig(
        lr=c["peak_lr"],
        schedule="linear",
        betas=tuple(c["betas"]),
        warmup=c["wp_it"] / c["max_it"],
        warmup_start=c["wp0"],
        final_lr=c["wpe"],
        weight_decay=c["wd"],
        weight_decay_end=c["wd_end"],
        grad_clip=c["clip"],
    )
    optimizer = build_adamw(var, config)
    for step, expected in enumerate(official["hist"]):
        set_schedule(optimizer, config, step, c["max_it"], batch_size=256)
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(expected["lr"], rel=1e-9)
        assert group["weight_decay"] == pytest.approx(expected["wd"], rel=1e-9)
        close.loss(learn(var, case, tokens), expected["loss"])
        norm = gradient_norm(var.parameters()).item()
        assert norm == pytest.approx(expected["grad_norm"], rel=1e-4)
        torch.nn.utils.clip_grad_norm_(var.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in var.named_parameters():
        expected = official["params_after"][official_var_name(name)]
        # Adam's step is the rate wherever a gradient is rounding noise: bound the few, not all.
        difference = (parameter - expected).abs()
        assert difference.max() < 2 * sum(h["lr"] for h in official["hist"]), name
        assert (difference > 1e-5).float().mean() < 1e-3, name


@pytest.mark.parametrize("mode", MODES)
def test_sampling_draws_the_official_tokens_and_images(make_var, tokenizer, case, close, mode):
    expected, var = case["sample"][mode], make_var()
    args = expected.get("args", {"cfg": 1.5, "top_k": 1})
    settings = SamplingSettings(args["cfg"], args["top_k"], args.get("top_p", 0.0))
    labels = case["label"]
    if mode == "greedy_uncond":
        labels = torch.full_like(labels, var.num_classes)
    drawn = Sampler(var, tokenizer).draw(labels, settings, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.tokens, torch.cat(expected["idx_Bl"], dim=1))
    if "img01" in expected:
        close.images((drawn.images + 1) / 2, expected["img01"])


def test_the_tokenizer_trains_on_the_official_losses_and_gradients(tokenizer, case, close):
    official = case["vae_train"][0]
    output = tokenizer(case["img"])
    vq_loss = output.codebook_loss.mean() + 0.25 * output.commitment_loss.mean()
    total = functional.mse_loss(output.reconstruction, case["img"]) + vq_loss
    total.backward()
    named = {
        official_tokenizer_name(name, tokenizer.config): p.grad
        for name, p in tokenizer.named_parameters()
    }
    tokenizer.zero_grad(set_to_none=True)
    close.images(output.reconstruction.detach(), official["rec"])
    close.loss(vq_loss.item(), official["vq_loss"])
    close.loss(total.item(), official["total"])
    norms = official["grad_norms"]
    assert named.keys() == norms.keys()
    # Where a bias precedes a group norm its gradient is rounding noise around zero.
    floor = 1e-5 * max(norms.values())
    for name, expected in norms.items():
        assert named[name].norm().item() == pytest.approx(expected, rel=5e-3, abs=floor), name
    for name, expected in official["grads"].items():
        error = (named[name] - expected).norm().item()
        assert error <= 1e-2 * norms[name] + floor, name


def test_smooth_sampling_draws_the_official_tokens_and_blends(make_var, tokenizer, case):
    expected, var = case["sample"]["seed0_smooth"], make_var()
    args = expected["args"]
    settings = SamplingSettings(args["cfg"], args["top_k"], args["top_p"], more_smooth=True)
    generator = torch.Generator().manual_seed(expected["g_seed"])
    drawn = Sampler(var, tokenizer).draw(case["label"], settings, generator)
    assert torch.equal(drawn.tokens, torch.cat(expected["idx_Bl"], dim=1))
    torch.testing.assert_close((drawn.images + 1) / 2, expected["img01"], atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", ["edit_inpaint", "edit_outpaint"])
def test_editing_draws_what_the_official_notebook_draws(
    make_var, tokenizer, case, tokens, close, kind
):
    expected, var = case[kind], make_var()
    settings = SamplingSettings(expected["cfg"], top_k=1, top_p=0.0)
    unconditional = torch.full_like(case["label"], var.num_classes)
    known = known_outside(tokenizer, case["img"], 1 - expected["mask"])
    drawn = Sampler(var, tokenizer).draw(unconditional, settings, known=known)
    # The notebook records what was drawn before it puts the known tokens back.
    official = torch.cat(expected["idx_Bl"], dim=1)
    assert torch.equal(drawn.tokens, known.at(official, slice(None)))
    assert torch.equal(known.tokens, tokens)
    if "img01" in expected:
        close.images((drawn.images + 1) / 2, expected["img01"])
