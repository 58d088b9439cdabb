"""Damage done for real, to images, losses and gradients of both stages, and none of it stays."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from varlit.data.digits import DigitsDataModule
from varlit.training.ema import update_average
from varlit.training.guard import StepGuard
from varlit.training.optim import gradient_norms

pytestmark = pytest.mark.filterwarnings("ignore")

GAN = {"disc_weight": 0.5, "disc_start": 0.0, "disc_warmup": 0.4, "lecam_decay": 0.5}
CODES = {"update": "ema", "restart_below": 0.5}


class Breaks(Callback):
    """Does damage at some steps (the first is 1); keeps the state after every step."""

    def __init__(self, how, *steps):
        self.how, self.steps = how, steps
        self.states = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 in self.steps:
            self.how(module, batch)

    def on_train_batch_end(self, trainer, module, *args):
        self.states.append(state(trainer, module))


def state(trainer, module):
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return {"optimizer": copy.deepcopy(trainer.optimizers[0].state_dict()), **weights}


def broken_image(module, batch):
    batch["image"] = batch["image"].clone()
    batch["image"][1, 0, 3, 3] = math.nan


def broken_embedding(module, batch):
    """The embedding of a class becomes NaN for one pass, as a bad bit in memory would have it."""
    handle = module.network.class_embedding.register_forward_hook(
        lambda _, inputs, output: (handle.remove(), output * math.nan)[1]
    )


def broken_gradient(module, batch):
    """The loss stays finite."""
    weight = next(p for p in module.network.parameters() if p.requires_grad)
    handle = weight.register_hook(lambda grad: (handle.remove(), grad * math.inf)[1])


def broken_term(module, batch):
    """A loss that is only looked at is Inf; all gradients are finite."""
    see = module.guard.see

    def infinite(loss, terms):
        module.guard.see = see
        see(loss, {**terms, "loss/extra": torch.tensor(math.inf)})

    module.guard.see = infinite


def trainable(found):
    """What a skipped step must leave: everything but averages of weights and counters of steps."""
    moving = ("average.", "keeper.num_updates")
    kept = {k: v for k, v in found.items() if not k.startswith(moving) and k != "optimizer"}
    return {**kept, "moments": found["optimizer"]["state"]}


def is_finite(found):
    return all(torch.isfinite(v).all() for v in found.values() if isinstance(v, torch.Tensor))


def moved(after, before):
    names = [name for name in before if name.startswith("network.")]
    return any(not torch.equal(after[name], before[name]) for name in names)


def skipped(module):
    return [record.read().was_skipped for record in module.guard.records][-3:]


def last(module):
    return module.guard.records[-1]


@pytest.mark.parametrize("how", [broken_image, broken_gradient, broken_term])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.slow
def test_the_tokenizer_with_its_game_and_codes_skips_a_broken_step(
    make_tokenizer_module, make_trainer, digits, assert_same, how, accumulate
):
    module, breaks = make_tokenizer_module(codebook=CODES, **GAN), Breaks(how, 3)
    trainer = make_trainer(breaks, max_steps=5, accumulate_grad_batches=accumulate)
    trainer.fit(module, digits)
    before, after = breaks.states[2 * accumulate - 1], breaks.states[3 * accumulate - 1]
    assert_same(trainable(after), trainable(before))
    assert all(is_finite(found) for found in breaks.states)
    assert moved(breaks.states[-1], after), "and then it goes on"
    assert skipped(module) == [True, False, False]


@pytest.mark.parametrize("how", [broken_embedding, broken_gradient, broken_term])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_transformer_skips_a_broken_step(
    make_var_module, make_trainer, tokens, assert_same, how, optimizer
):
    module, breaks = make_var_module(optim={"optimizer": optimizer}), Breaks(how, 3)
    make_trainer(breaks, max_steps=5).fit(module, tokens)
    before, after = breaks.states[1:3]
    assert_same(trainable(after), trainable(before))
    assert all(is_finite(found) for found in breaks.states)
    assert moved(breaks.states[-1], after)
    assert skipped(module) == [True, False, False]


def test_a_skipped_step_is_one_in_which_the_averaged_weights_stand_still(
    make_var_module, make_trainer, tokens
):
    module, breaks = make_var_module(), Breaks(broken_embedding, 3)
    make_trainer(breaks, max_steps=3).fit(module, tokens)
    before, after = breaks.states[1:]
    expected = copy.deepcopy(module.average)
    expected.load_state_dict(
        {k.removeprefix("average."): v for k, v in before.items() if k.startswith("average.")}
    )
    update_average(expected, module.network, 0.9, step=3)
    for name, value in expected.state_dict().items():
        assert torch.equal(after[f"average.{name}"], value)


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_a_healthy_run_gives_the_same_bits_with_and_without(
    make_tokenizer_module, make_var_module, make_trainer, tokens, assert_same, clip
):
    optim = {"grad_clip": clip}
    for make, data in (
        (lambda: make_tokenizer_module(codebook=CODES, optim=optim, **GAN), None),
        (lambda: make_var_module(optim=optim), tokens),
    ):
        found = []
        for is_on in (True, False):
            module, trainer = make(), make_trainer(max_steps=4, log_every_n_steps=3)
            module.guard.is_on = is_on
            trainer.fit(module, data or DigitsDataModule(batch_size=4, image_size=16))
            assert len(module.guard.records) == 4 * is_on
            found.append(state(trainer, module))
        assert_same(*found)


def test_without_the_guard_one_nan_is_the_end(make_var_module, make_trainer, tokens):
    module, breaks = make_var_module(), Breaks(broken_embedding, 3)
    module.guard.is_on = False
    make_trainer(breaks, max_steps=4).fit(module, tokens)
    assert not is_finite(breaks.states[-1])


def test_codes_start_on_the_sound_images_of_a_first_batch(
    make_tokenizer_module, make_trainer, digits
):
    module, breaks = make_tokenizer_module(codebook={"init": "kmeans"}), Breaks(broken_image, 1)
    before = module.network.quantizer.codebook.weight.clone()
    make_trainer(breaks, max_steps=2).fit(module, digits)
    assert is_finite(breaks.states[-1])
    assert not torch.equal(breaks.states[0]["network.quantizer.codebook.weight"], before)


def test_what_was_broken_is_known_by_name(
    make_tokenizer_module, make_var_module, make_trainer, digits, tokens
):
    module = make_tokenizer_module(**GAN)
    make_trainer(Breaks(broken_image, 2), max_steps=2).fit(module, digits)
    assert {"loss/l1", "loss/total", "gan/logits_fake"} <= set(last(module).broken_terms())
    module = make_var_module()
    make_trainer(Breaks(broken_gradient, 2), max_steps=2).fit(module, tokens)
    record = last(module)
    assert record.broken_terms() == []
    assert [name for found in record.gradients for name in found.broken()] == ["start_position"]
    reading = record.read()
    assert reading.was_skipped
    assert not reading.is_own, "every process has the summed gradient"
    assert math.isfinite(reading.loss)


def test_the_norm_is_that_of_torch_to_the_bit():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(size)) for size in ((7, 5), (11,), (3, 3, 3), (1,))]
    for weight in weights[:3]:
        weight.grad = torch.randn_like(weight)
    gradients = [weight.grad for weight in weights[:3]]
    norm = torch.linalg.vector_norm(gradient_norms(weights))
    assert torch.equal(norm, torch.nn.utils.get_total_norm(gradients))


def test_averages_that_follow_a_step_are_put_back_only_if_it_is_broken():
    for is_broken, expected in ((True, 1.0), (False, 2.0)):
        guard, buffer = StepGuard(), torch.ones(())
        guard.is_broken = torch.tensor(is_broken)
        with guard.keep_if_broken([buffer]):
            buffer.add_(1)
        assert buffer == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_nothing_waits_for_a_gpu():
    network = nn.Linear(8, 8).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    guard = StepGuard()
    for step in range(1, 4):
        loss = (network(torch.ones(2, 8, device="cuda")) * (math.nan if step == 2 else 1)).sum()
        torch.cuda.set_sync_debug_mode("error")
        guard.see(loss, {"loss": loss})
        loss.backward()
        guard.gradient_norm(network)
        guard.judge(optimizer)
        optimizer.step()
        guard.finish(step)
        optimizer.zero_grad()
        torch.cuda.set_sync_debug_mode("default")
    assert [record.read().was_skipped for record in guard.records] == [False, True, False]
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
