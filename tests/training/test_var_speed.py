"""Faster is not different: however stage 2 computes, it trains the same weights."""

import warnings

import pytest
import torch

from varlit.errors import UserError
from varlit.models.var import VAR
from varlit.training.var_speed import SpeedConfig

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(make_var_module, make_trainer, tokens, **settings):
    torch.manual_seed(0)
    module = make_var_module(speed=SpeedConfig(**settings))
    make_trainer(max_steps=4).fit(module, tokens)
    return module


@pytest.mark.parametrize(
    "settings",
    [{"attention": "segmented"}, {"attention": "measure"}, {"checkpointing": "blocks"}],
    ids=str,
)
def test_the_same_weights_are_trained(make_var_module, make_trainer, tokens, settings):
    plain = trained(make_var_module, make_trainer, tokens, attention="dense").network
    fast = trained(make_var_module, make_trainer, tokens, **settings).network
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_every_setting_reaches_the_network(make_var_module, make_trainer, tokens, monkeypatch):
    asked = []
    monkeypatch.setattr(VAR, "compile_blocks", lambda self, *settings: asked.append(settings))
    settings = {"attention": "dense", "compile": "default", "memory_budget": 0.5}
    module = trained(make_var_module, make_trainer, tokens, checkpointing="blocks", **settings)
    assert asked == [("default", 0.5)]
    assert module.network.attention_backend == "dense"
    assert module.network.checkpoint_activations == "blocks"
    measured = trained(make_var_module, make_trainer, tokens, attention="measure")
    assert measured.network.attention_backend in ("dense", "segmented")


def test_speed_is_no_part_of_what_a_resumed_run_must_repeat(
    make_var_module, make_trainer, tokens, tmp_path
):
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_var_module(), tokens)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = make_trainer(max_steps=3)
    other = make_var_module(speed=SpeedConfig(checkpointing="blocks"))
    resumed.fit(other, tokens, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.global_step == 3
    assert other.network.checkpoint_activations == "blocks"


def test_a_budget_that_nothing_reads_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpeedConfig(memory_budget=0.5, compile="default")
        SpeedConfig(memory_budget=1.0)
    with pytest.warns(UserWarning, match="memory_budget is ignored"):
        SpeedConfig(memory_budget=0.5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention": "flash"}, "attention must be one of auto, measure"),
        ({"compile": "yes"}, "compile must be one of none"),
        ({"checkpointing": "all"}, "checkpointing must be one of none, blocks"),
        ({"memory_budget": 0.0}, "memory_budget must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        SpeedConfig(**settings)
