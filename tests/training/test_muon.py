"""Muon beside AdamW: who moves what, how far, and that a run goes on exactly."""

from types import SimpleNamespace

import pytest
import torch

from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.training.muon import build_optimizer, is_muons
from varlit.training.optim import OptimConfig, TokenizerOptimConfig, build_players, set_schedule
from varlit.training.sharding import ShardedStrategy

pytestmark = pytest.mark.filterwarnings("ignore")

MUON = OptimConfig(optimizer="muon", lr=0.01, grad_clip=0.0)
TOKENIZER = TokenizerConfig(codebook_size=16, codebook_dim=4, scales=(1, 2))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VAR(VARConfig(depth=2, width=16, num_heads=2), TOKENIZER, 3)


def with_gradients(network):
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_muon_moves_four_matrices_a_block_and_adamw_every_other_weight(network):
    optimizer = build_optimizer(network, MUON)
    names = {parameter: name for name, parameter in network.named_parameters()}
    moved = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    assert len(moved[0]) == 2 * 4
    assert all(is_muons(name) for name in moved[0])
    assert sorted(name for part in moved for name in part) == sorted(names.values()), "each once"
    assert not any("adaln" in name or "embedding" in name for name in moved[0])


def test_a_matrix_moves_by_an_orthogonal_step_of_adamws_size(network):
    optimizer = build_optimizer(network, MUON)
    set_schedule(optimizer, MUON, step=50, total_steps=100, batch_size=256)
    with_gradients(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer.step()
    rate, decay = (optimizer.param_groups[0][key] for key in ("lr", "weight_decay"))
    for name, parameter in network.named_parameters():
        change = (parameter.detach() - before[name]) / rate
        if is_muons(name):
            change += decay * before[name]
            sizes = torch.linalg.svdvals(change) / (0.2 * max(parameter.shape) ** 0.5)
            assert 0.6 < sizes.min() <= sizes.max() < 1.3, name
        elif parameter.ndim == 1:
            assert change.abs().max() == pytest.approx(1, abs=1e-3), "AdamW's first step"


def test_rate_and_decay_of_a_step_reach_both_rules(network):
    config = OptimConfig(optimizer="muon", weight_decay=0.1, weight_decay_end=0.3)
    optimizer = build_optimizer(network, config)
    set_schedule(optimizer, config, step=99, total_steps=100, batch_size=512)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    found = [group["weight_decay"] for group in optimizer.param_groups]
    assert found == pytest.approx([0.3, 0.3, 0.0], abs=1e-3)


def test_a_resumed_run_is_the_whole_run_to_the_bit(
    make_var_module, make_trainer, tokens, tmp_path, assert_same, save_at
):
    path = tmp_path / "half.ckpt"
    settings = {"optimizer": "muon"}
    whole = make_var_module(optim=settings)
    make_trainer(save_at(2, path), max_steps=4).fit(whole, tokens)
    again = make_var_module(optim=settings)
    make_trainer(max_steps=4).fit(again, tokens, ckpt_path=path)
    assert_same(again.state_dict(), whole.state_dict())
    plain = make_var_module()
    with pytest.raises(UserError, match=r"has optim\.optimizer = muon, but now it is None"):
        make_trainer(max_steps=4).fit(plain, tokens, ckpt_path=path)


def test_cut_matrices_are_refused(make_var_module):
    module = make_var_module(optim={"optimizer": "muon"})
    module._trainer = SimpleNamespace(strategy=object.__new__(ShardedStrategy))
    with pytest.raises(UserError, match="muon wants whole matrices"):
        module.configure_model()


def test_stage_1_and_lora_have_no_muon(network):
    with pytest.raises(UserError, match="is for stage 2"):
        build_players(network, None, TokenizerOptimConfig(optimizer="muon"))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith("blocks."))
    with pytest.raises(UserError, match=r"with model\.lora take adamw"):
        build_optimizer(network, MUON)
    with pytest.raises(UserError, match="adamw or muon; got `sgd`"):
        OptimConfig(optimizer="sgd")
