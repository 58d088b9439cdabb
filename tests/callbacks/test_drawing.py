import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from varlit.callbacks.codebook import CodebookWatch
from varlit.callbacks.drawing import Cadence, undisturbed
from varlit.callbacks.reconstructions import Reconstructions, fixed_images
from varlit.callbacks.samples import Samples, clip, spread_classes
from varlit.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


def steps_of(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("*.png"))


def test_pictures_come_at_powers_of_two_up_to_the_cadence_and_then_at_the_cadence():
    cadence = Cadence(10)
    assert [s for s in range(41) if cadence.is_due(s)] == [0, 1, 2, 4, 8, 10, 20, 30, 40]


def test_a_step_that_batches_share_is_drawn_once_and_zero_is_off():
    cadence = Cadence(2)
    assert [cadence.is_due(s) for s in (2, 2, 3, 4, 4)] == [True, False, False, True, False]
    assert not any(Cadence(0).is_due(s, is_last=True) for s in range(10))
    assert cadence.is_due(5, is_last=True)
    assert not cadence.is_due(5, is_last=True), "a last step that was drawn already"


def test_drawing_gives_back_training_flags_gradients_and_random_stream(make_module):
    network = make_module().network.train()
    network.frozen_in_eval.eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with undisturbed(network) as lent:
        assert not lent.training
        assert not torch.is_grad_enabled()
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)
    assert network.training
    assert network.dropout.training
    assert not network.frozen_in_eval.training
    assert torch.is_grad_enabled()


def test_a_run_with_pictures_equals_a_run_without_to_the_bit(make_module, make_trainer, digits):
    weights = []
    for every in (0, 2):
        callbacks = (Reconstructions(every), Samples(every), CodebookWatch(every))
        module = make_module()
        torch.manual_seed(7)
        make_trainer(*callbacks, max_steps=7, val_check_interval=2).fit(module, digits)
        weights.append(module.network.gain.detach().clone())
    assert torch.equal(*weights)
    assert module.asked, "nothing was drawn"


def test_reconstructions_are_drawn_in_eval_mode_as_png_and_in_tensorboard(
    make_module, make_trainer, digits, run
):
    module = make_module()
    make_trainer(Reconstructions(4, num_images=3), limit_val_batches=0).fit(module, digits)
    assert set(module.network.modes) == {(False, False)}
    for tag in ("reconstructions", "pyramid", "token_maps"):
        assert steps_of(run / "pictures" / tag) == [0, 1, 2, 4, 5]
        assert (run / "pictures" / tag / "step-0000004.png").exists()
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert "pictures/reconstructions" in events.Tags()["images"]
    assert [e.step for e in events.Images("pictures/pyramid")] == [0, 1, 2, 4, 5]


def test_the_fixed_images_are_spread_over_the_validation_set(make_module, make_trainer, digits):
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_module(), digits)
    images = fixed_images(trainer, 3)
    expected = digits.digits.test_images[[0, 99, 198]]
    assert torch.equal(images, expected)


def test_without_a_validation_set_training_images_are_drawn(
    make_module, make_trainer, digits, run, monkeypatch
):
    monkeypatch.setattr(digits, "val_dataloader", lambda: [])
    trainer = make_trainer(Reconstructions(2, num_images=3), max_steps=2)
    trainer.fit(make_module(), digits)
    assert steps_of(run / "pictures" / "reconstructions") == [0, 1, 2]
    assert torch.equal(fixed_images(trainer, 3), digits.digits.train_images[[0, 500, 1000]])


def test_samples_ask_for_the_same_classes_and_seed_every_time(
    make_module, make_trainer, digits, run
):
    module = make_module()
    samples = Samples(4, classes=[3, 7], columns=2, cfg_scale=2.0, seed=5, sweep=())
    make_trainer(samples, limit_val_batches=0).fit(module, digits)
    assert module.asked == [([3, 3, 7, 7], 5, 2.0, False)] * 5
    assert steps_of(run / "pictures" / "samples") == [0, 1, 2, 4, 5]
    assert steps_of(run / "pictures" / "growing") == [0, 1, 2, 4, 5]


def test_a_sweep_draws_the_same_seeds_at_every_guidance(make_module, make_trainer, digits, run):
    module = make_module()
    samples = Samples(4, classes=[3, 7], columns=1, seed=5, sweep=(0.0, 4.0))
    make_trainer(samples, limit_val_batches=0, max_steps=1).fit(module, digits)
    one_picture = [([3, 7], 5, 1.5, False), ([3, 7], 5, 0.0, False), ([3, 7], 5, 4.0, False)]
    assert module.asked == one_picture * 2
    assert steps_of(run / "pictures" / "guidance") == [0, 1]


def test_a_class_that_the_model_lacks_is_refused_before_training(make_module, make_trainer, digits):
    with pytest.raises(UserError, match=r"names \[12\].*classes 0 to 9"):
        make_trainer(Samples(classes=[1, 12])).fit(make_module(), digits)


def test_default_classes_are_all_of_a_few_and_eight_of_many():
    assert spread_classes(10) == list(range(10))
    assert spread_classes(1000) == [0, 125, 250, 375, 500, 625, 750, 875]


def test_long_class_names_are_clipped():
    assert clip("tench") == "tench"
    assert clip("a" * 40) == "a" * 16 + ".."


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("callback", [Reconstructions, Samples])
def test_a_picture_that_finds_no_memory_does_not_end_the_training(
    callback, make_module, make_trainer, digits, monkeypatch
):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    module = make_module()
    monkeypatch.setattr(module, "draw", fail)
    monkeypatch.setattr(type(module.network), "decode", fail)
    trainer = make_trainer(callback(2), limit_val_batches=0)
    with pytest.warns(UserWarning, match="no memory left for the pictures") as told:
        trainer.fit(module, digits)
    assert trainer.global_step == 5
    told = {str(each.message) for each in told if "no memory" in str(each.message)}
    assert len(told) == 1, "one text, which is shown once"
