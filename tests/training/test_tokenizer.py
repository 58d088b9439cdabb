import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.reconstructions import Reconstructions
from varlit.data.digits import DigitsDataModule
from varlit.errors import UserError
from varlit.losses.tokenizer import TokenizerLossConfig
from varlit.metrics.reconstruction import psnr
from varlit.models.files import load_tokenizer, tokenizer_hash
from varlit.training.tokenizer_game import play

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
    place = (module.network.last_layer, 1.0, 0)
    game = play(module.loss, module.discriminator, output, images, terms, *place)
    game.objective.backward()
    found = gradients(module)
    module.zero_grad(set_to_none=True)
    adversarial, judged = game.scalars["loss/adversarial"], game.scalars["gan/disc_loss"]
    torch.testing.assert_close(game.value, (terms.total + 0.5 * adversarial + judged).detach())
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
    module = make_tokenizer_module(optim={"grad_clip": 1e-3}, **GAN)
    make_trainer(max_steps=1).fit(module, digits)
    for network in (module.network, module.discriminator):
        found = [p.grad for p in network.parameters() if p.grad is not None]
        assert torch.nn.utils.get_total_norm(found).item() == pytest.approx(1e-3, rel=1e-3)


def moved(make_module, make_trainer, accumulate, images=8, max_steps=1, **loss):
    """Weights, LeCam's averages and what was logged, after steps in so many parts."""
    module, watch = make_module(**loss), Watch()
    data = DigitsDataModule(batch_size=images, image_size=16)
    trainer = make_trainer(watch, max_steps=max_steps, accumulate_grad_batches=accumulate)
    trainer.fit(module, data)
    assert trainer.global_step == max_steps
    assert len(watch.seen) == max_steps * accumulate
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return gradients, module.loss.state_dict(), watch.seen[-1]


@pytest.mark.parametrize(
    "loss", [NO_GAN, GAN | {"adaptive_weight": False}], ids=["alone", "with a discriminator"]
)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_step_in_parts_is_a_step_on_the_whole_batch(
    make_tokenizer_module, make_trainer, loss, accumulate
):
    # The gradients, for Adam's first step is the sign of each, which rounding may turn.
    whole, lecam, logged = moved(make_tokenizer_module, make_trainer, 1, **loss)
    parts, lecam_of_parts, logged_of_parts = moved(
        make_tokenizer_module, make_trainer, accumulate, **loss
    )
    assert parts.keys() == whole.keys()
    floor = 1e-5 * max(value.norm().item() for value in whole.values())
    for name, value in whole.items():
        assert (parts[name] - value).norm() <= 1e-3 * value.norm() + floor, name
    assert lecam.keys() == lecam_of_parts.keys()
    for name, value in lecam.items():
        torch.testing.assert_close(lecam_of_parts[name], value, atol=1e-7, rtol=1e-5)
    assert logged_of_parts.keys() == logged.keys()
    for name, value in logged.items():
        assert logged_of_parts[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_codes_are_counted_and_restarted_once_a_step_by_all_its_parts(
    make_tokenizer_module, make_trainer
):
    found = []
    for accumulate in (1, 2):
        module = make_tokenizer_module(codebook={"restart_below": 1.0}, **NO_GAN)
        data = DigitsDataModule(batch_size=8, image_size=16)
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulate)
        trainer.fit(module, data)
        found.append(module.keeper.state_dict())
    assert found[0]["num_updates"] == 1
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_codes_of_k_means_are_in_the_average_too_but_not_over_those_of_another_run(
    make_tokenizer_module, make_trainer, digits, tmp_path
):
    settings = {"codebook": {"init": "kmeans"}, "optim": {"lr": 1e-9}, **NO_GAN}
    module = make_tokenizer_module(**settings)
    before = module.network.quantizer.codebook.weight.detach().clone()
    make_trainer(max_steps=1).fit(module, digits)
    for network in (module.network, module.average):
        assert not torch.allclose(network.quantizer.codebook.weight, before, atol=1e-4)
    module.export(tmp_path / "first")
    again = make_tokenizer_module(init_from=str(tmp_path / "first"), **settings)
    make_trainer(max_steps=1).fit(again, digits)
    first, second = (m.averaged.quantizer.codebook.weight for m in (module, again))
    torch.testing.assert_close(second, first, atol=1e-6, rtol=0)


def test_with_an_adaptive_weight_only_that_weight_is_of_the_parts(
    make_tokenizer_module, make_trainer
):
    whole = moved(make_tokenizer_module, make_trainer, 1, **GAN)[2]
    parts = moved(make_tokenizer_module, make_trainer, 2, **GAN)[2]
    own = {"gan/adaptive_weight", "gan/generator_weight", "loss/total", "optim/grad_norm"}
    for name, value in whole.items():
        rel = 0.3 if name in own else 1e-3
        assert parts[name] == pytest.approx(value, rel=rel, abs=1e-6), name


def test_the_discriminators_schedule_runs_from_its_own_start(
    make_tokenizer_module, make_trainer, digits
):
    def rates(**optim):
        watch = Watch()
        module = make_tokenizer_module(
            optim={"warmup": 0.25, "final_lr": 0.1, **optim}, disc_weight=0.5, disc_start=0.5
        )
        make_trainer(watch, max_steps=8).fit(module, digits)
        assert ["gan/lr" in seen for seen in watch.seen] == [False] * 4 + [True] * 4
        return [[seen.get(name) for seen in watch.seen] for name in ("optim/lr", "gan/lr")]

    tokenizers, own = rates()
    # Half the steps are left, so its warm-up is half as long and meets the same end.
    assert own[4] == pytest.approx(tokenizers[0])
    assert own[5] == pytest.approx(tokenizers[2]), "the peak"
    assert own[7] == pytest.approx(tokenizers[7])
    tokenizers, shared = rates(disc_schedule="shared")
    assert shared[4:] == tokenizers[4:]


def test_a_resting_discriminator_ages_not_at_all(make_tokenizer_module, make_trainer, digits):
    module = make_tokenizer_module(disc_weight=0.5, disc_start=0.75)
    trainer = make_trainer(max_steps=4)
    trainer.fit(module, digits)
    (optimizer,) = trainer.optimizers
    counted = {
        group["player"]: {int(optimizer.state[p]["step"]) for p in group["params"]}
        for group in optimizer.param_groups
    }
    assert counted == {"tokenizer": {4}, "discriminator": {1}}


def test_another_scale_schedule_starts_from_a_single_scale_tokenizer(
    make_tokenizer_module, make_trainer, digits, tmp_path
):
    single = make_tokenizer_module(tokenizer={"scales": (4,)}, **NO_GAN)
    with torch.no_grad():
        torch.nn.init.normal_(single.network.quantizer.codebook.weight)
    single.export(tmp_path / "single")
    module = make_tokenizer_module(init_from=str(tmp_path / "single"), **NO_GAN)
    make_trainer(max_steps=0).fit(module, digits)
    for network in (module.network, module.average):
        found, expected = network.state_dict(), single.average.state_dict()
        for name in expected:
            if "phis" not in name:
                assert torch.equal(found[name], expected[name]), name
    # What the scales add up to decodes as it did on one scale.
    maps = torch.randn(3, 2, 8, 4, 4)  # K, B, C, h, w
    summed = sum(module.network.quantizer._phi(h, k) for k, h in enumerate(maps))
    torch.testing.assert_close(summed, single.average.quantizer._phi(maps.sum(0), 0))


def test_the_same_scales_are_taken_over_whole_and_a_resumed_run_keeps_its_own(
    make_tokenizer_module, make_trainer, digits, tmp_path, assert_same
):
    first = make_tokenizer_module(**NO_GAN)
    make_trainer(max_steps=2).fit(first, digits)
    first.export(tmp_path / "first")
    again = make_tokenizer_module(init_from=str(tmp_path / "first"), **NO_GAN)
    trainer = make_trainer(max_steps=0)
    trainer.fit(again, digits)
    assert_same(weights(again.network), weights(first.average))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = make_tokenizer_module(init_from="gone", **NO_GAN)
    make_trainer(max_steps=0).fit(resumed, digits, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert_same(weights(resumed.network), weights(again.network))


@pytest.mark.parametrize(
    ("given", "message"),
    [("nowhere", "model.init_from nowhere: no config.json"), ("{folder}", "codebook_size 12,")],
)
def test_a_start_that_does_not_fit_is_refused_by_the_name_of_the_field(
    make_tokenizer_module, make_trainer, digits, tmp_path, given, message
):
    make_tokenizer_module(tokenizer={"codebook_size": 12}, **NO_GAN).export(tmp_path / "other")
    given = given.format(folder=tmp_path / "other")
    module = make_tokenizer_module(init_from=given, **NO_GAN)
    with pytest.raises(UserError, match=message):
        make_trainer(max_steps=1).fit(module, digits)


def test_the_average_follows_and_is_what_is_looked_at(make_tokenizer_module, make_trainer, digits):
    module = make_tokenizer_module(optim={"ema_decay": 0.5, "lr": 1.0}, **NO_GAN)
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
    module.measures.open_network = absent
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
    validating = {"val_check_interval": 2, "limit_val_batches": 2}
    drawing = Reconstructions(every_n_steps=2, num_images=3)
    make_trainer(drawing, max_steps=3, **validating).fit(watched, digits)
    assert [path.name for path in tmp_path.rglob("worst/*.png")] == ["step-0000002.png"]
    pictures = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert {"step-0000000.png", "step-0000001.png", "step-0000002.png"} <= set(pictures)
    plain = make_tokenizer_module(**GAN)
    make_trainer(max_steps=3, **validating).fit(plain, digits)
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
