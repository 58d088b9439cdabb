"""Low-rank adapters: they change nothing at first, they alone learn, they leave plain weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from varlit.cli import main as command_line
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_var, save_var
from varlit.models.var import VAR
from varlit.training.lora import LoRAConfig, LowRankLinear, add_lora, load_plain, merged
from varlit.training.optim import OptimConfig, build_adamw

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = TokenizerConfig(32, (1, 1, 1), 1, codebook_size=24, codebook_dim=8, scales=(1, 2, 4))
BODY = VARConfig(depth=2, width=32, num_heads=4, class_dropout=0.0)
ALL = LoRAConfig(rank=4, targets=("qkv", "projection", "mlp", "adaln"))
LORA = LoRAConfig(rank=4)
ADAPTERS_OF_A_BLOCK = 4  # qkv, projection, two of the MLP


@torch.no_grad()
def make_var(shared_adaln=False):
    """A VAR in which every weight has a say: a fresh one's gates are next to closed."""
    body = VARConfig(**(BODY.to_dict() | {"shared_adaln": shared_adaln}))
    var = VAR(body, TOKENIZER, 3).eval()
    for parameter in var.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return var


@torch.no_grad()
def train_a_little(var):
    """Factors that are not zero, as after training."""
    for name, parameter in var.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.2)
    return var


LABELS, INPUTS = torch.tensor([0, 2, 3]), torch.randn(3, 20, 8)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_adapters_change_nothing_at_first(shared_adaln):
    var = make_var(shared_adaln)
    before = var(LABELS, INPUTS)
    add_lora(var, ALL)
    assert torch.equal(var(LABELS, INPUTS), before)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_every_adapter_is_heard_and_learns(shared_adaln):
    var = make_var(shared_adaln).train()
    add_lora(var, ALL)
    train_a_little(var)
    var(LABELS, INPUTS).square().mean().backward()
    adapters = [part for part in var.modules() if isinstance(part, LowRankLinear)]
    assert len(adapters) == 2 * ADAPTERS_OF_A_BLOCK + (1 if shared_adaln else 2)
    for adapter in adapters:
        assert adapter.up.grad.norm() > 0
        assert adapter.down.grad.norm() > 0
        assert adapter.base.grad is None
    assert (var.class_embedding.weight.grad[[0, 2, 3]].norm(dim=1) > 0).all()
    assert var.head.weight.grad is None


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_merged_it_is_a_plain_var_that_computes_the_same(shared_adaln):
    var, plain = make_var(shared_adaln), make_var(shared_adaln)
    add_lora(var, ALL)
    before = merged(var)(LABELS, INPUTS)
    together = merged(train_a_little(var))
    assert together.state_dict().keys() == plain.state_dict().keys()
    found, expected = together(LABELS, INPUTS), var(LABELS, INPUTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.1
    assert merged(plain) is plain


def test_drawing_scale_by_scale_agrees_with_the_merged_network():
    var = make_var()
    add_lora(var, ALL)
    train_a_little(var)
    logits = []
    for network in (var, merged(var)):
        state = network.begin(LABELS)
        network.advance(state)
        logits.append(network.advance(state, INPUTS[:, :4]))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_the_strength_is_alpha_over_rank():
    linear = nn.Linear(8, 6)
    adapter = LowRankLinear(linear, rank=2, alpha=6.0)
    nn.init.normal_(adapter.up)
    added = adapter.weight - linear.weight
    torch.testing.assert_close(added, 3 * adapter.up @ adapter.down)
    assert torch.linalg.matrix_rank(added.detach()) == 2
    x = torch.randn(5, 8)
    torch.testing.assert_close(adapter(x), nn.functional.linear(x, adapter.weight, linear.bias))


def test_plain_weights_are_taken_over_below_the_adapters():
    var, other = make_var(), make_var()
    add_lora(var, ALL)
    train_a_little(var)
    factors = {k: v.clone() for k, v in var.state_dict().items() if ".up" in k or ".down" in k}
    load_plain(var, other.state_dict())
    assert torch.equal(var.layers[0].attention.qkv.base, other.layers[0].attention.qkv.weight)
    assert torch.equal(var.head.weight, other.head.weight)
    assert all(torch.equal(var.state_dict()[k], v) for k, v in factors.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        load_plain(var, {"head.weight": other.head.weight})


def test_the_optimizer_knows_what_is_trained_and_nothing_else():
    var = make_var()
    add_lora(var, LORA)
    groups = build_adamw(var, OptimConfig()).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    names = {name for name, p in var.named_parameters() if id(p) in held}
    assert {name.rpartition(".")[2] for name in names} == {"up", "down", "weight"}
    assert {name for name in names if name.endswith("weight")} == {"class_embedding.weight"}


def test_parts_trained_whole_are_chosen():
    var = make_var()
    whole = ("class_embedding", "head_adaln", "position", "level_embedding")
    add_lora(var, LoRAConfig(rank=2, targets=(), whole=whole))
    assert {n for n, p in var.named_parameters() if p.requires_grad} == {
        "class_embedding.weight",
        "head_adaln.weight",
        "head_adaln.bias",
        "position",
        "level_embedding.weight",
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": -1}, "rank must be at least 0"),
        ({"alpha": 0.0}, "lora.alpha above 0"),
        ({"targets": ("attention",)}, "among qkv, projection, mlp, adaln; got `attention`"),
        ({"whole": ("heads",)}, "no `heads`; parts of a VAR are class_embedding, head, "),
        ({"rank": 32}, "has rank 32; take a lower"),
        ({"targets": (), "whole": ()}, "nothing would be trained"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        add_lora(make_var(), LoRAConfig.of({"rank": 4} | settings))


@pytest.fixture
def start(cache, tmp_path):
    """A VAR of the modules' shape, with the tokenizer of their cache."""
    save_var(make_var(), cache / "tokenizer", tmp_path / "start", ("cat", "dog", "owl"))
    return tmp_path / "start"


def test_adapters_without_a_trained_network_are_refused(make_var_module):
    with pytest.raises(UserError, match=r"--model\.init_from RUN"):
        make_var_module(lora=LORA)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_trains_adapters_and_classes_and_exports_plain_weights(
    start, make_var_module, make_trainer, tokens, tmp_path, ema_decay
):
    settings = {"ema_decay": ema_decay, "lr": 1e-1}
    module = make_var_module(init_from=str(start), lora=LORA, optim=settings)
    make_trainer(max_steps=4).fit(module, tokens)
    before = load_var(start).var.state_dict()
    state = module.network.state_dict()
    changed = {
        name for name, value in before.items() if name in state and differs(value, state[name])
    }
    assert changed == {"class_embedding.weight"}
    rows = (state["class_embedding.weight"] - before["class_embedding.weight"]).norm(dim=1)
    assert (rows > 0).all(), "the unconditional row, the last, learns too"
    for name, module_ in module.network.named_modules():
        if isinstance(module_, LowRankLinear):
            assert torch.equal(module_.base, before[f"{name}.weight"])
            assert module_.up.norm() > 0
    module.export(tmp_path / "out")
    loaded = load_var(tmp_path / "out")
    found, expected = (var.eval()(LABELS, INPUTS) for var in (loaded.var, module.averaged))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loaded.var.state_dict().keys() == before.keys()
    assert differs(found, load_var(start).var(LABELS, INPUTS))
    assert torch.isfinite(module.draw(torch.tensor([0, 1])).images).all()


def differs(a, b):
    return not torch.equal(a, b)


def test_a_resumed_run_is_the_whole_run_to_the_bit(
    start, make_var_module, make_trainer, tokens, tmp_path, assert_same, save_at
):
    path, settings = tmp_path / "half.ckpt", {"init_from": str(start), "lora": LORA}
    whole = make_var_module(**settings)
    make_trainer(save_at(2, path), max_steps=4).fit(whole, tokens)
    again = make_var_module(**settings)
    make_trainer(max_steps=4).fit(again, tokens, ckpt_path=path)
    assert_same(again.state_dict(), whole.state_dict())
    content = torch.load(path, weights_only=True)
    (optimizer,) = content["optimizer_states"]
    assert len(optimizer["state"]) == 2 * 2 * ADAPTERS_OF_A_BLOCK + 1, (
        "two factors, and the classes"
    )
    loaded = type(whole).load_from_checkpoint(path, weights_only=True)
    assert_same(loaded.state_dict(), content["state_dict"])


def test_a_checkpoint_with_other_adapters_or_none_is_refused_by_name(
    start, make_var_module, make_trainer, tokens, tmp_path
):
    path = tmp_path / "a.ckpt"
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_var_module(init_from=str(start), lora=LORA), tokens)
    trainer.save_checkpoint(path)
    for other in (LoRAConfig(rank=2), LoRAConfig()):
        module = make_var_module(init_from=str(start), lora=other)
        with pytest.raises(UserError, match=r"has lora\.\w+ = "):
            make_trainer().fit(module, tokens, ckpt_path=path)


def test_a_checkpoint_from_before_there_were_adapters_goes_on(
    make_var_module, make_trainer, tokens, tmp_path
):
    path = tmp_path / "old.ckpt"
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_var_module(), tokens)
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    for name in ("lora", "init_from"):
        del content["hyper_parameters"][name]
    torch.save(content, path)
    make_trainer(max_steps=2).fit(make_var_module(), tokens, ckpt_path=path)


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(start, cache, tmp_path, monkeypatch, strategy):
    monkeypatch.chdir(tmp_path)
    words = ["var", "fit", "-c", "digits", "--data.tokens", str(cache), "--data.batch_size", "8"]
    for key, value in {"depth": 2, "width": 32, "num_heads": 4, "class_dropout": 0}.items():
        words += [f"--model.var.{key}", str(value)]
    words += ["--model.init_from", str(start), "--model.lora.rank", "4", "--trainer.max_steps", "3"]
    words += ["--model.lora.targets", "[qkv,mlp]", "--samples.every_n_steps", "0"]
    assert command_line.main([*words, "--name", "one", "--gpus", "0"]) == 0
    way = ["--trainer", "fsdp"] if strategy == "fsdp" else ["--trainer.strategy", "ddp"]
    two = [*way, "--name", "two", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    launch = LAUNCH if strategy == "fsdp" else []
    source = Path(__file__).resolve().parents[2] / "src"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    command = [sys.executable, *launch, "-m", "varlit", *words, *two]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starts from") == 1, "the first process says it, alone"
    paths = [Path("runs", name, "checkpoints/last.ckpt") for name in ("two", "one")]
    found, expected = (torch.load(path, weights_only=True) for path in paths)
    (ours,), (theirs,) = found["optimizer_states"], expected["optimizer_states"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, slots in theirs["state"].items():
        moment = ours["state"][number]["exp_avg"]
        torch.testing.assert_close(moment, slots["exp_avg"], atol=1e-6, rtol=0.03)
    two, one = (load_var(Path("runs", name)).var.state_dict() for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert torch.equal(two["head.weight"], one["head.weight"])
