import math
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.completions import Completions
from varlit.callbacks.samples import Samples
from varlit.data.order import BatchIndex
from varlit.errors import UserError
from varlit.losses.next_scale import next_scale_loss
from varlit.models.files import load_var

pytestmark = pytest.mark.filterwarnings("ignore")

LABELS = torch.tensor([0, 1, 2])


class Watch(Callback):
    """Keeps what was logged at each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_training_logs_loss_and_accuracy_of_every_scale(make_var_module, make_trainer, tokens):
    watch = Watch()
    trainer = make_trainer(watch, max_steps=3)
    trainer.fit(make_var_module(), tokens)
    assert trainer.global_step == len(watch.seen) == 3
    seen = watch.seen[0]
    for name in ("01x01", "02x02", "04x04"):
        assert math.isfinite(seen[f"scale_loss/{name}"])
        assert 0 <= seen[f"scale_accuracy/{name}"] <= 1
    by_scale = [seen[f"scale_loss/{name}"] for name in ("01x01", "02x02", "04x04")]
    assert seen["loss/mean"] == pytest.approx(
        sum(n * x for n, x in zip((1, 4, 16), by_scale, strict=True)) / 21, rel=1e-5
    )
    assert seen["loss/last_scale"] == by_scale[-1]
    assert seen["optim/grad_norm"] > 0
    assert seen["optim/lr"] > 0
    assert seen["optim/weight_decay"] == pytest.approx(0.05)
    assert 0 < seen["optim/update_ratio"] < 1
    assert seen["optim/clipped_share"] in (0, 1)
    entropy = [seen[f"scale_entropy/{name}"] for name in ("01x01", "02x02", "04x04")]
    assert all(0 < value <= math.log(24) + 1e-5 for value in entropy)


def test_the_loss_is_that_of_teacher_forcing_with_the_true_inputs(make_var_module, tokens):
    module = make_var_module().eval()
    batch = next(iter(tokens.train_dataloader()))
    loss = module._terms(batch, module.network, with_details=False).loss
    inputs = module.tokenizer.teacher_inputs(batch["tokens"])
    logits = module.network(batch["label"], inputs)
    expected = next_scale_loss(logits, batch["tokens"], tokens.scales).loss
    assert torch.equal(loss, expected)


def test_the_tokenizer_is_frozen_and_part_of_no_checkpoint(make_var_module, make_trainer, tokens):
    module = make_var_module()
    before = weights(module.tokenizer)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, tokens)
    assert all(
        torch.equal(value, before[name]) for name, value in weights(module.tokenizer).items()
    )
    assert {name.split(".")[0] for name in module.state_dict()} == {"network", "average"}
    assert not module.tokenizer.training


def test_validation_never_drops_a_label(make_var_module, make_trainer, tokens):
    module = make_var_module(var={"class_dropout": 1.0})
    torch.nn.init.normal_(module.average.class_embedding.weight)
    torch.nn.init.normal_(module.average.head.weight)
    (found,) = make_trainer(limit_val_batches=1.0).validate(module, tokens, verbose=False)
    batches = list(tokens.val_dataloader())
    whole = {key: torch.cat([b[key] for b in batches]) for key in ("tokens", "label")}
    expected = module._terms(whole, module.average.eval(), with_details=False).loss
    assert found["val/loss/mean"] == pytest.approx(expected.item(), rel=1e-4)


def test_validation_leaves_training_in_training_mode(make_var_module, make_trainer, tokens):
    module, modes = make_var_module(optim={"ema_decay": 0.0}), []

    class Modes(Callback):
        def on_train_batch_start(self, *args):
            modes.append(all(part.training for part in module.network.modules()))

    trainer = make_trainer(Modes(), max_steps=4, limit_val_batches=1, val_check_interval=1)
    trainer.fit(module, tokens)
    assert modes == [True] * 4


def test_pictures_are_drawn_and_change_nothing(
    make_var_module, make_trainer, tokens, tmp_path, assert_same
):
    for ema_decay in (0.9, 0.0):
        watched = make_var_module(optim={"ema_decay": ema_decay})
        samples = Samples(every_n_steps=2, columns=1)
        make_trainer(samples, max_steps=3).fit(watched, tokens)
        plain = make_var_module(optim={"ema_decay": ema_decay})
        make_trainer(max_steps=3).fit(plain, tokens)
        assert_same(weights(watched), weights(plain))
    names = {path.name for path in tmp_path.rglob("*.png")}
    assert {"step-0000000.png", "step-0000001.png", "step-0000002.png"} <= names


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_draws_what_its_tokens_decode_to_in_any_precision(
    make_var_module, make_trainer, tokens, precision
):
    module = make_var_module()
    make_trainer(max_steps=2, precision=precision).fit(module, tokens)
    drawn = module.draw(LABELS, seed=3)
    assert drawn.images.shape == (3, 3, 16, 16)
    assert len(drawn.frames) == 3
    assert torch.isfinite(drawn.images).all()
    again = module.draw(LABELS, seed=3, with_frames=False)
    assert torch.equal(again.tokens, drawn.tokens)
    if precision == "32-true":
        assert torch.equal(drawn.images, module.tokenizer.decode(drawn.tokens))
        alone = module.draw(LABELS[1:2], seed=4)
        assert torch.equal(alone.tokens, drawn.tokens[1:2]), "image i has seed + i"


def test_the_average_is_what_is_drawn_validated_and_exported(
    make_var_module, make_trainer, tokens, tmp_path, assert_same
):
    module = make_var_module()
    make_trainer(max_steps=3).fit(module, tokens)
    assert module.averaged is module.average
    assert not torch.equal(module.average.head.weight, module.network.head.weight)
    module.export(tmp_path / "out")
    loaded = load_var(tmp_path / "out")
    assert_same(weights(loaded.var), weights(module.average))
    assert_same(weights(loaded.tokenizer), weights(module.tokenizer))
    assert loaded.class_names == ("cat", "dog", "owl")


def test_accumulating_gradients_is_one_large_batch(make_var_module, make_trainer, tokens):
    settings = {"var": {"class_dropout": 0.0, "drop_path": 0.0}}
    whole = make_var_module(**settings)
    make_trainer(max_steps=1).fit(whole, tokens)
    parts = make_var_module(**settings)
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=2)
    trainer.fit(parts, tokens)
    assert trainer.global_step == 1
    for optimizers in zip(trainer.optimizers, whole.trainer.optimizers, strict=True):
        found, expected = (list(o.state.values()) for o in optimizers)
        for a, b in zip(found, expected, strict=True):
            # The first moment after one step is the gradient but for a factor.
            torch.testing.assert_close(a["exp_avg"], b["exp_avg"], atol=1e-7, rtol=1e-3)


def test_a_cache_of_another_tokenizer_is_refused(make_var_module, make_trainer, tokens):
    tokens.tokenizer_hash = "f" * 64
    with pytest.raises(UserError, match=r"made by tokenizer ffffffffffff, .*make cache-tokens"):
        make_trainer().fit(make_var_module(), tokens)


def test_a_tokenizer_that_is_not_there_is_named(make_var_module, cache, tmp_path):
    moved = shutil.copytree(cache, tmp_path / "copy")
    (moved / "tokenizer" / "config.json").unlink()
    module = make_var_module()
    with pytest.raises(UserError, match=r"copy/tokenizer: config\.json is missing"):
        type(module)(module.config, module.optim_config, 3, str(moved / "tokenizer"))


def test_label_smoothing_reaches_the_loss(make_var_module, tokens):
    batch = next(iter(tokens.train_dataloader()))
    losses = []
    for smoothing in (0.0, 0.5):
        module = make_var_module(label_smoothing=smoothing).eval()
        torch.nn.init.normal_(module.network.head.weight)
        losses.append(module._terms(batch, module.network, with_details=False).loss.item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize("num_known", [0, 1, 3])
def test_a_completion_keeps_the_scales_that_are_given(
    make_var_module, make_trainer, tokens, num_known
):
    module = make_var_module()
    make_trainer(max_steps=1).fit(module, tokens)
    pyramids = tokens.source("train")[BatchIndex(np.arange(3), np.zeros(3, int))]["tokens"]
    images = module.complete(pyramids, LABELS, num_known)
    assert images.shape == (3, 3, 16, 16)
    if num_known == 3:
        torch.testing.assert_close(images, module.tokenizer.decode(pyramids))
    else:
        assert not torch.allclose(images, module.tokenizer.decode(pyramids))


def test_completions_are_drawn_of_held_out_images(make_var_module, make_trainer, tokens, tmp_path):
    trainer = make_trainer(Completions(every_n_steps=2), max_steps=2)
    trainer.fit(make_var_module(), tokens)
    [*pictures] = (tmp_path / "pictures" / "completions").glob("*.png")
    assert {path.stem for path in pictures} >= {"step-0000002"}
