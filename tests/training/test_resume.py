"""Six steps at once and three plus three end at the same bits, in both stages."""

import copy

import pytest
import torch

from varlit.data.digits import DigitsDataModule
from varlit.data.tokens.module import TokenDataModule
from varlit.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")

# The discriminator starts after the second step, so both kinds of step are resumed into.
GAN = {"disc_weight": 0.5, "disc_start": 0.3, "disc_warmup": 0.4, "lecam_decay": 0.5}


def state(trainer, module):
    optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
    return {"optimizers": optimizers} | {k: v.clone() for k, v in module.state_dict().items()}


def six_at_once_and_resumed(make_module, make_data, make_trainer, save_at, path):
    states = []
    for callbacks, checkpoint in (([save_at(3, path)], None), ([], path)):
        module, trainer = make_module(), make_trainer(*callbacks, max_steps=6)
        torch.manual_seed(99 if checkpoint else 0)  # what happened before must not matter
        trainer.fit(module, make_data(), ckpt_path=checkpoint, weights_only=True)
        assert trainer.global_step == 6
        states.append(state(trainer, module))
    return states


# Everything that draws or remembers: codes, dropouts, distortions, penalties.
WHOLE_GAME = {"disc_augment": ("translation", "cutout"), "r1_weight": 1.0, "r1_every_n_steps": 2}
CODEBOOK = {"init": "kmeans", "restart_below": 0.5, "dropout": 0.5, "dropout_min_scales": 1}


@pytest.mark.parametrize(
    ("accumulate", "step_of_start"), [(1, 0.3), (1, 0.6), (2, 0.3)], ids=["during", "after", "2"]
)
def test_the_tokenizer_with_its_discriminator_goes_on_to_the_bit(
    make_tokenizer_module,
    make_trainer,
    save_at,
    tmp_path,
    assert_same,
    accumulate,
    step_of_start,
):
    def trainer(*callbacks, max_steps):
        return make_trainer(*callbacks, max_steps=max_steps, accumulate_grad_batches=accumulate)

    whole, resumed = six_at_once_and_resumed(
        lambda: make_tokenizer_module(
            tokenizer={"dropout": 0.1},
            codebook=CODEBOOK,
            **(GAN | WHOLE_GAME | {"disc_start": step_of_start}),
        ),
        lambda: DigitsDataModule(batch_size=4, image_size=16),
        trainer,
        save_at,
        tmp_path / "a.ckpt",
    )
    assert_same(resumed, whole)
    assert whole["loss.lecam.gathered"] > 0, "the game was on"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_transformer_goes_on_to_the_bit(
    make_var_module, make_trainer, save_at, tmp_path, cache, assert_same, accumulate
):
    def trainer(*callbacks, max_steps):
        return make_trainer(*callbacks, max_steps=max_steps, accumulate_grad_batches=accumulate)

    whole, resumed = six_at_once_and_resumed(
        make_var_module,
        lambda: TokenDataModule(str(cache), batch_size=8),  # an epoch has five steps
        trainer,
        save_at,
        tmp_path / "a.ckpt",
    )
    assert_same(resumed, whole)


def test_todays_settings_win_over_those_in_the_checkpoint(
    make_tokenizer_module, make_trainer, save_at, tmp_path
):
    data = DigitsDataModule(batch_size=4, image_size=16)
    path = tmp_path / "a.ckpt"
    make_trainer(save_at(1, path), max_steps=1).fit(make_tokenizer_module(**GAN), data)
    changed = {"betas": (0.8, 0.97), "disc_lr": 3e-5, "disc_weight_decay": 0.25}
    module, trainer = make_tokenizer_module(optim=changed, **GAN), make_trainer(max_steps=2)
    trainer.fit(module, data, ckpt_path=path, weights_only=True)
    groups = trainer.optimizers[0].param_groups
    assert all(tuple(group["betas"]) == (0.8, 0.97) for group in groups)
    judge = [group for group in groups if group["player"] == "discriminator"]
    assert judge[0]["weight_decay"] == 0.25
    assert judge[0]["lr_share"] == pytest.approx(3e-5 / module.optim_config.lr)


def test_a_checkpoint_is_plain_data(
    make_tokenizer_module, make_var_module, make_trainer, digits, tokens, tmp_path, assert_same
):
    for module, data in ((make_tokenizer_module(**GAN), digits), (make_var_module(), tokens)):
        trainer = make_trainer(max_steps=1)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)
        assert loaded["global_step"] == 1
        again = type(module).load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
        assert_same(again.state_dict(), module.state_dict())


def test_a_checkpoint_of_another_architecture_is_refused_by_name(
    make_tokenizer_module, make_var_module, make_trainer, digits, tokens, tmp_path
):
    for make, data, change, message in (
        (make_tokenizer_module, digits, {"tokenizer": {"codebook_size": 12}}, "codebook_size = 24"),
        (make_var_module, tokens, {"var": {"depth": 1}}, "var.depth = 2, but now it is 1"),
    ):
        trainer = make_trainer(max_steps=1)
        trainer.fit(make(), data)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=message):
            make_trainer().fit(make(**change), data, ckpt_path=tmp_path / "a.ckpt")
