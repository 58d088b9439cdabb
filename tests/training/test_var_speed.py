"""Faster is not different: however stage 2 computes, it trains the same weights."""

import pytest
import torch

from varlit.errors import UserError
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


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention": "flash"}, "attention must be one of auto, measure"),
        ({"compile": "yes"}, "compile must be one of none"),
        ({"checkpointing": "all"}, "checkpointing must be one of none, blocks"),
        ({"memory_budget": 0.0}, "memory_budget must lie in 0..1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        SpeedConfig(**settings)
