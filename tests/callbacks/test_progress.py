import re
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Trainer

from varlit.callbacks.cards import card, describe_parameters, short
from varlit.callbacks.clock import StepClock, duration
from varlit.callbacks.loops import LoopProgress
from varlit.callbacks.progress import Progress
from varlit.callbacks.readings import count_images, describe_figures, read_loss
from varlit.callbacks.terminal import Terminal
from varlit.data.digits import DigitsDataModule

pytestmark = pytest.mark.filterwarnings("ignore")


def told(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_training_is_told_from_card_to_card(make_module, make_trainer, digits, run, capsys):
    (run / "pictures").mkdir(parents=True)
    make_trainer(Progress(every_n_steps=2), max_steps=10).fit(make_module(), digits)
    lines = told(capsys)
    assert lines[0] == "training FakeModule"
    text = "\n".join(lines)
    assert "1,500 training images, 297 validation images, 10 classes" in text
    assert "10 steps, 5 steps an epoch" in text
    assert f"tensorboard --logdir {run.parent}" in text
    steps = [line for line in lines if line.startswith("step ")]
    assert [int(line.split()[1].split("/")[0]) for line in steps] == [1, 2, 4, 6, 8, 10]
    assert re.fullmatch(r"step  6/10   60 %  loss \S+ +[\d,]+ img/s  \d+s left", steps[3])
    assert "left" not in steps[-1]
    assert "validation at step 5  quality/psnr 21.5" in lines
    assert any(line.startswith("finished at step 10 after") for line in lines)
    assert lines[-1].split(maxsplit=1) == ["next", "varlit tokenizer predict --name tok"]


def test_zero_is_silence(make_module, make_trainer, digits, capsys):
    make_trainer(Progress(every_n_steps=0)).fit(make_module(), digits)
    assert told(capsys) == []


def test_other_processes_are_quiet(make_module, make_trainer, digits, capsys, monkeypatch):
    trainer = make_trainer(Progress(every_n_steps=1))
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    trainer.fit(make_module(), digits)
    trainer.test(make_module(), digits, verbose=False)
    assert told(capsys) == []


def test_steps_are_optimizer_steps_and_images_count_accumulated_batches(
    make_module, make_trainer, capsys
):
    progress = Progress(every_n_steps=1)
    trainer = make_trainer(progress, max_steps=3, accumulate_grad_batches=2)
    trainer.fit(make_module(), DigitsDataModule(batch_size=300))
    steps = [line for line in told(capsys) if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/3", "2/3", "3/3"]
    assert progress._images_per_step == 300


def test_a_time_limit_bounds_the_time_left(make_module, make_trainer, digits, capsys):
    trainer = make_trainer(Progress(1), max_steps=-1, max_time=timedelta(seconds=1))
    trainer.fit(make_module(), digits)
    steps = [line for line in told(capsys) if line.startswith("step ")]
    assert len(steps) > 1
    assert all(line.endswith(("0s left", "1s left")) for line in steps)


def test_tests_and_predictions_are_told_too(make_module, make_trainer, digits, capsys):
    trainer = make_trainer(Progress())
    trainer.test(make_module(), digits)
    assert any(re.match(r"test  \d+ batches in \d", line) for line in told(capsys))
    trainer.predict(make_module(), digits)
    assert any(re.match(r"predict  \d+ batches in \d", line) for line in told(capsys))


def test_the_clock_leaves_out_the_first_step_and_pauses():
    clock = StepClock()
    now = 0.0
    for step in range(12):
        clock.tick(now)
        now += 60.0 if step == 0 else 2.0
        if step == 5:
            clock.pause(30.0)
            now += 30.0
    assert clock.step_s == pytest.approx(2.0)
    assert clock.left_s(10) == pytest.approx(20.0)
    assert clock.left_s(10, num_pauses=2) == pytest.approx(80.0)


def test_a_slow_step_now_and_then_does_not_shake_the_clock():
    clock = StepClock()
    now = 0.0
    for step in range(100):
        clock.tick(now)
        now += 50.0 if step == 70 else 1.0
    assert clock.step_s == pytest.approx(1.0)


def test_before_two_steps_nothing_is_promised():
    clock = StepClock()
    clock.tick(0.0)
    clock.tick(5.0)
    assert clock.step_s is None
    assert clock.left_s(10) is None


def test_durations_and_counts_are_short():
    assert [duration(s) for s in (0, 59, 62, 7500, 273600)] == [
        "0s",
        "59s",
        "1m02s",
        "2h05m",
        "3d04h",
    ]
    counts = (0, 912, 1234, 45_600_000, 310_000_000, 2_010_000_000)
    assert [short(n) for n in counts] == ["0", "912", "1.23 k", "45.6 M", "310 M", "2.01 B"]


def test_the_loss_is_found_by_its_tag_or_in_the_output():
    loss = torch.tensor(0.5)
    assert read_loss({"loss/mean_step": loss}, None) == 0.5
    assert read_loss({"other": loss}, {"loss": torch.tensor(2.0)}) == 2.0
    assert read_loss({}, None) is None


def test_figures_by_scale_stay_out_of_the_line():
    metrics = {"loss/total": 1.0, "val/loss/mean": 2.0, "val/scale_loss/01x01": 3.0}
    assert describe_figures(metrics) == "loss/mean 2"


def test_samples_of_a_batch_are_counted():
    assert count_images({"label": torch.zeros(7)}) == 7
    assert count_images((torch.zeros(3, 2), "x")) == 3


def test_a_card_leaves_out_what_is_not_known():
    assert card("title", {"a": "1", "long": "2", "none": ""}) == "title\n  a     1\n  long  2"


def test_parameters_are_told_by_part():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(10, 100), "b": torch.nn.Linear(1, 1)})
    module.b.requires_grad_(False)
    assert describe_parameters(module) == "1.10 k parameters"
    module.b.requires_grad_(True)
    assert describe_parameters(module) == "1.10 k parameters (a 1.10 k, b 2)"


def test_an_encoding_tells_images_and_not_crops_a_second():
    loop = LoopProgress("predict", [10], Terminal())
    loop._clock = StepClock()
    for second in (0.0, 1.0, 3.0, 5.0):
        loop._clock.tick(second)
    loop._done, loop._images_per_batch = 4, 6
    assert loop._line() == "predict  batch 4/10   40 %  3 img/s  12s left"


def test_several_crops_of_an_image_count_once(make_module, make_trainer, monkeypatch):
    counted = []
    monkeypatch.setattr(LoopProgress, "advance", lambda self, count=0: counted.append(count))
    progress, trainer = Progress(), make_trainer()
    progress._loop = LoopProgress("predict", [1], Terminal())
    batch = {"id": torch.tensor([4, 4, 5, 5]), "crop": torch.tensor([1, 2, 1, 2])}
    progress.on_predict_batch_end(trainer, make_module(), None, batch, 0)
    assert counted == [2]
