"""Parity of the transformer, the loop and editing that everybody can check, by a committed cut."""

from types import SimpleNamespace

import pytest
import torch

from varlit.checkpoints.official import official_tokenizer_name, official_var_name
from varlit.generation.editing.known import KnownTokens, known_at_scales
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.losses.next_scale import next_scale_loss
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.var import VAR

EVERY_TOKEN = 17  # as tests/fixtures/make_official.py
MODES = ["greedy_cfg1.5", "greedy_cfg0", "greedy_cfg4", "greedy_uncond"]
MODES += ["seed0_cfg1.5_k20_p0.9", "seed0_smooth"]


@pytest.fixture(scope="module")
def sampler(official, official_var):
    """Transformer and quantizer; no pixels are decoded here."""
    c = official["config"]
    shape = TokenizerConfig(
        codebook_size=c["V"], codebook_dim=c["Cvae"], scales=tuple(c["patch_nums"])
    )
    quantizer = MultiScaleQuantizer(shape)
    theirs = {n: official_tokenizer_name(f"quantizer.{n}", shape) for n in quantizer.state_dict()}
    quantizer.load_state_dict({n: official["quantizer"][there] for n, there in theirs.items()})
    config = VARConfig(depth=c["depth"], class_dropout=0.0)
    var = VAR(config, shape, c["num_classes"])
    weights = official_var["weights"]
    var.load_state_dict({n: weights[official_var_name(n)] for n in var.state_dict()})
    return Sampler(var.eval(), SimpleNamespace(quantizer=quantizer))


def settings_of(out):
    args = out.get("args", {"cfg": out.get("cfg", 1.5), "top_k": 1})
    smooth = args.get("more_smooth", False)
    return SamplingSettings(args["cfg"], args["top_k"], args.get("top_p", 0.0), more_smooth=smooth)


def drawn_tokens(sampler, labels, out, known=None):
    random = torch.Generator().manual_seed(out.get("g_seed") or 0)
    steps = sampler.steps(labels, settings_of(out), random, known)
    return torch.cat([step.tokens for step in steps], dim=1)


@torch.no_grad()
def test_logits_and_loss_are_the_official_ones(sampler, official_var):
    var, tokens, labels = sampler.var, official_var["tokens"].long(), official_var["label"]
    inputs = sampler.tokenizer.quantizer.teacher_inputs(tokens)
    logits = var(labels, inputs)
    expected = official_var["logits"]
    torch.testing.assert_close(logits[:, ::EVERY_TOKEN], expected, atol=2e-4, rtol=0)
    free = var(torch.full_like(labels, var.num_classes), inputs)[:, ::EVERY_TOKEN]
    torch.testing.assert_close(free, official_var["logits_uncond"], atol=2e-4, rtol=0)
    loss = next_scale_loss(logits, tokens, var.scales).loss
    assert loss.item() == pytest.approx(float(official_var["loss"]), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_sampling_draws_the_official_tokens_exactly(sampler, official_var, mode):
    out, labels = official_var["sample"][mode], official_var["label"]
    if mode == "greedy_uncond":
        labels = torch.full_like(labels, sampler.var.num_classes)
    assert torch.equal(drawn_tokens(sampler, labels, out), out["tokens"].long())


@pytest.mark.parametrize("kind", ["edit_inpaint", "edit_outpaint"])
def test_editing_draws_what_the_official_notebook_draws(sampler, official_var, kind):
    out, scales = official_var["edit"][kind], sampler.var.scales
    is_known = known_at_scales(out["mask"].bool().expand(2, -1, -1), scales)
    known = KnownTokens(official_var["tokens"].long(), is_known)
    labels = torch.full_like(official_var["label"], sampler.var.num_classes)
    # The notebook records what was drawn before it puts the known tokens back.
    expected = known.at(out["tokens"].long(), slice(None))
    assert torch.equal(drawn_tokens(sampler, labels, out, known), expected)
