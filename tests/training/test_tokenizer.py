import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.reconstructions import Reconstructions
from varlit.errors import UserError
from varlit.losses.tokenizer import TokenizerLossConfig
from varlit.metrics.reconstruction import psnr
from varlit.models.files import load_tokenizer, tokenizer_hash

pytestmark = pytest.mark.filterwarnings("ignore")

GAN = {"disc_weight": 0.5, "disc_start": 0.0, "disc_warmup": 0.0}
NO_GAN = {"disc_weight": 0.0}


class Watch(Callback):
    """Keeps what was logged at each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_step_is_counted_once_although_two_networks_learn(
    make_tokenizer_module, make_trainer, digits
):
    module, watch = make_tokenizer_module(**GAN), Watch()
    before = weights(module.discriminator), weights(module.network)
    trainer = make_trainer(watch, max_steps=6)
    trainer.fit(module, digits)
    assert trainer.global_step == len(watch.seen) == 6
    for network, was in zip((module.discriminator, module.network), before, strict=True):
        moved = [n for n, v in network.named_parameters() if not torch.equal(v, was[n])]
        frozen = [n for n, v in network.named_parameters() if not v.requires_grad]
        assert set(moved) | set(frozen) == {n for n, _ in network.named_parameters()}
    assert {"gan/disc_loss", "gan/adaptive_weight", "loss/adversarial"} <= set(watch.seen[0])


def test_before_its_start_the_discriminator_changes_nothing(
    make_tokenizer_module, make_trainer, digits, assert_same
):
    late = make_tokenizer_module(disc_weight=0.5, disc_start=1.0)
    untrained = weights(late.discriminator)
    make_trainer(max_steps=4).fit(late, digits)
    without = make_tokenizer_module(**NO_GAN)
    make_trainer(max_steps=4).fit(without, digits)
    assert not hasattr(without, "discriminator")
    assert_same(weights(late.network), weights(without.network))
    assert_same(weights(late.average), weights(without.average))
    assert_same(weights(late.discriminator), untrained)
    playing = make_tokenizer_module(**GAN)
    make_trainer(max_steps=4).fit(playing, digits)
    assert not torch.equal(playing.network.last_layer, late.network.last_layer)


def test_the_discriminator_starts_at_its_share_of_training(
    make_tokenizer_module, make_trainer, digits
):
    watch = Watch()
    module = make_tokenizer_module(disc_weight=0.5, disc_start=0.5, disc_warmup=0.5)
    make_trainer(watch, max_steps=4).fit(module, digits)
    assert ["gan/disc_loss" in seen for seen in watch.seen] == [False, False, True, True]
    balance, weight = (
        [seen[f"gan/{name}_weight"] for seen in watch.seen[2:]]
        for name in ("adaptive", "generator")
    )
    assert weight == pytest.approx([0.0, 0.5 * 0.5 * balance[1]])


def gradients(module):
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_the_fused_pass_gives_each_player_the_gradient_of_its_own_loss(
    make_tokenizer_module, digits
):
    module = make_tokenizer_module(**GAN, adaptive_weight=False, lecam_weight=0.0)
    images = next(iter(digits.train_dataloader()))["image"]
    output = module.network(images)
    terms = module.loss.reconstruction_terms(output, images)
    fused, _ = module._adversarial(output, images, terms, progress=1.0)
    (terms.total + fused).backward()
    found = gradients(module)
    module.zero_grad(set_to_none=True)
    # As two separate steps: first the generator with the discriminator held, then the reverse.
    output = module.network(images)
    terms = module.loss.reconstruction_terms(output, images)
    judged = module.discriminator(output.reconstruction)
    (terms.total + 0.5 * module.loss.generator_term(judged)).backward()
    expected = {n: g for n, g in gradients(module).items() if n.startswith("network")}
    module.zero_grad(set_to_none=True)
    real = module.discriminator(images)
    fake = module.discriminator(output.reconstruction.detach())
    module.loss.discriminator_term(real, fake).backward()
    expected |= gradients(module)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_gradients_are_clipped_for_each_network_by_itself(
    make_tokenizer_module, make_trainer, digits
):
    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            groups = [module.network, module.discriminator]
            found = [[p.grad for p in g.parameters() if p.grad is not None] for g in groups]
            self.norms = [torch.nn.utils.get_total_norm(g).item() for g in found]

    module, norms = make_tokenizer_module(optim={"grad_clip": 1e-3}, **GAN), Norms()
    make_trainer(norms, max_steps=1).fit(module, digits)
    assert norms.norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_the_average_follows_and_is_what_is_looked_at(make_tokenizer_module, make_trainer, digits):
    module = make_tokenizer_module(optim={"ema_decay": 0.5}, **NO_GAN)
    first = weights(module.network)
    make_trainer(max_steps=1).fit(module, digits)
    weight = max(0.5, 9 / 11)
    for name, value in module.averaged.named_parameters():
        expected = torch.lerp(first[name], module.network.state_dict()[name], weight)
        torch.testing.assert_close(value, expected)
    assert module.averaged is module.average
    plain = make_tokenizer_module(optim={"ema_decay": 0.0}, **NO_GAN)
    assert plain.averaged is plain.network


def test_validation_measures_the_averaged_network(make_tokenizer_module, make_trainer, digits):
    module = make_tokenizer_module(**NO_GAN)
    trainer = make_trainer(limit_val_batches=2)
    (found,) = trainer.validate(module, digits, verbose=False)
    loader = iter(digits.val_dataloader())
    images = torch.cat([next(loader)["image"] for _ in range(2)])
    reconstruction = module.averaged.eval().reconstruct(images)
    assert found["val/psnr"] == pytest.approx(psnr(images, reconstruction).mean().item(), rel=1e-4)
    assert {"val/psnr", "val/ssim", "val/l1", "val/code_usage"} <= set(found)
    assert 0 < found["val/code_usage"] <= 1


def test_testing_needs_no_inception_and_measures_what_validation_does(
    make_tokenizer_module, make_trainer, digits
):
    def absent():
        raise UserError("no weights")

    module = make_tokenizer_module(**NO_GAN)
    module.open_metrics = absent
    trainer = make_trainer(limit_val_batches=2, limit_test_batches=2)
    (found,) = trainer.validate(module, digits, verbose=False)
    (tested,) = trainer.test(module, digits, verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in found.items()}


def test_prediction_is_tokens_with_what_identifies_them(
    make_tokenizer_module, make_trainer, digits
):
    module = make_tokenizer_module(**NO_GAN)
    (batches, _) = make_trainer(limit_predict_batches=1).predict(module, digits)
    assert set(batches[0]) == {"tokens", "label", "id", "crop"}
    images = digits.digits.train_images[batches[0]["id"]]
    assert torch.equal(batches[0]["tokens"], module.averaged.encode(images))


def test_pictures_are_drawn_and_change_nothing(
    make_tokenizer_module, make_trainer, digits, tmp_path, assert_same
):
    watched = make_tokenizer_module(**GAN)
    make_trainer(Reconstructions(every_n_steps=2, num_images=3), max_steps=3).fit(watched, digits)
    pictures = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert {"step-0000000.png", "step-0000001.png", "step-0000002.png"} <= set(pictures)
    plain = make_tokenizer_module(**GAN)
    make_trainer(max_steps=3).fit(plain, digits)
    assert_same(weights(watched), weights(plain))


def test_the_export_is_the_averaged_network(make_tokenizer_module, make_trainer, digits, tmp_path):
    module = make_tokenizer_module(**NO_GAN)
    make_trainer(max_steps=2).fit(module, digits)
    module.export(tmp_path / "out")
    assert tokenizer_hash(load_tokenizer(tmp_path / "out")) == tokenizer_hash(module.average)
    assert tokenizer_hash(module.average) != tokenizer_hash(module.network)


def test_it_is_built_from_plain_settings_too(make_tokenizer_module):
    module = make_tokenizer_module(**GAN)
    hparams = dict(module.hparams)
    again = type(module)(**hparams)
    assert again.config == module.config
    assert dict(again.hparams) == hparams
    assert again.loss.config == TokenizerLossConfig.of(hparams["loss"])


def test_images_that_do_not_fit_are_refused_when_it_is_built(make_tokenizer_module):
    with pytest.raises(UserError, match=r"scales must end at 4"):
        make_tokenizer_module(tokenizer={"scales": (1, 2)})


def test_fp16_with_loss_scaling_is_refused(make_tokenizer_module, make_trainer, digits):
    module = make_tokenizer_module(**NO_GAN)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(UserError, match="bf16-mixed"):
        module.setup("fit")


def test_it_trains_in_bf16(make_tokenizer_module, make_trainer, digits):
    module, watch = make_tokenizer_module(**GAN), Watch()
    make_trainer(watch, max_steps=2, precision="bf16-mixed").fit(module, digits)
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.isfinite(torch.tensor(list(seen.values()))).all() for seen in watch.seen)
