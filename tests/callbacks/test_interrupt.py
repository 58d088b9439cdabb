import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.interrupt import SaveOnInterrupt

SCRIPT = Path(__file__).with_name("interruptible.py")
stand_in = runpy.run_path(str(SCRIPT))
fit, digest = stand_in["fit"], stand_in["digest"]
STEPS_PER_EPOCH = stand_in["NUM_SAMPLES"] // stand_in["BATCH_SIZE"]
NUM_STEPS = STEPS_PER_EPOCH * stand_in["NUM_EPOCHS"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell starts background jobs deaf to Ctrl-C; the tests are about a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class SignalAt(Callback):
    """Sends this process a signal from inside of a step or of a validation batch."""

    def __init__(self, number, step, in_validation=None):
        self.number, self.step, self.in_validation = number, step, in_validation
        self.validations = []

    def on_before_zero_grad(self, trainer, *args):
        if self.in_validation is None and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx == self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_validation_end(self, trainer, *args):
        self.validations.append(trainer.global_step)


def saved_step(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["global_step"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Digest of the weights of a run that nobody interrupted."""
    return digest(fit(tmp_path_factory.mktemp("straight")))


def assert_ends_like(straight, folder):
    """Go on with a stopped run, which must take up its steps and end at the same bits."""
    done = saved_step(folder)
    module = fit(folder)
    assert module.num_batches == NUM_STEPS - done
    assert digest(module) == straight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "num_processes"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)]
)
def test_a_real_signal_saves_and_the_same_command_ends_at_the_same_bits(
    tmp_path, straight, number, code, num_processes
):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), str(num_processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "done 4\n":
            process.send_signal(number)
    assert process.wait(timeout=60) == code, "".join(lines)
    assert 4 <= saved_step(tmp_path) < NUM_STEPS
    said = [line for line in lines if "run the same command again to go on" in line]
    assert said == [
        f"saved {tmp_path}/checkpoints/last.ckpt at step {saved_step(tmp_path)}; "
        "run the same command again to go on\n"
    ]
    assert "Traceback" not in "".join(lines)
    if num_processes == 1:  # a mean over two processes rounds differently
        assert_ends_like(straight, tmp_path)


@pytest.mark.parametrize("step", [1, 13, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH])
def test_stopping_at_any_step_even_the_last_of_an_epoch_loses_nothing(tmp_path, straight, step):
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, SignalAt(signal.SIGINT, step))
    assert stop.value.code == 130
    assert saved_step(tmp_path) == step
    assert_ends_like(straight, tmp_path)


@pytest.mark.parametrize("batch", [0, 2, 3])
def test_a_signal_in_a_validation_cuts_it_short_and_training_goes_on(tmp_path, straight, batch):
    watcher = SignalAt(signal.SIGTERM, STEPS_PER_EPOCH, in_validation=batch)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, watcher)
    assert stop.value.code == 143
    assert watcher.validations == []
    resumed = SignalAt(signal.SIGTERM, step=-1)
    assert digest(fit(tmp_path, resumed)) == straight
    assert resumed.validations == [2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH]


def test_accumulated_gradients_are_applied_before_saving(tmp_path):
    class MidWindow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 4:  # the first of two batches that share step 3
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", MidWindow(), accumulate=2)
    assert saved_step(tmp_path / "cut") == 3
    resumed = fit(tmp_path / "cut", accumulate=2)
    assert digest(resumed) == digest(fit(tmp_path / "whole", accumulate=2))


def test_sigusr1_saves_and_goes_on(tmp_path, straight, capsys):
    class Saved(Callback):
        steps = ()

        def on_save_checkpoint(self, trainer, *args):
            self.steps += (trainer.global_step,)

    saved = Saved()
    module = fit(tmp_path, saved, SignalAt(signal.SIGUSR1, 7))
    assert 7 in saved.steps
    assert "at step 7; going on" in capsys.readouterr().out
    assert digest(module) == straight
    assert module.interrupt.signal_number == 0


def test_a_signal_while_processes_ask_each_other_is_obeyed_at_the_next_step(monkeypatch):
    callback, saved = SaveOnInterrupt(), []
    trainer = SimpleNamespace(is_global_zero=True, global_step=1)
    callback._group = "of both processes"

    def all_reduce(told, *_, **__):
        callback.signal_number = signal.SIGTERM  # what a handler does, amid the exchange

    monkeypatch.setattr("varlit.callbacks.interrupt.dist.all_reduce", all_reduce)
    monkeypatch.setattr("varlit.callbacks.interrupt.save_last", saved.append)
    callback._obey(trainer)
    assert saved == [], "the other process knows of nothing yet"
    with pytest.raises(SystemExit):
        callback._obey(trainer)
    assert saved == [trainer]


def test_a_second_signal_stops_at_once_without_saving(tmp_path, capfd):
    class Twice(Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, Twice())
    assert stop.value.code == 130
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert "stopped at once" in capfd.readouterr().err


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    fit(tmp_path / "ended", max_steps=1)
    with pytest.raises(SystemExit):
        fit(tmp_path / "stopped", SignalAt(signal.SIGINT, 1))
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    # After an exception Lightning puts ours back last; then it must pass signals on.
    for number, old, new in zip((2, 15, 10), before, after, strict=True):
        assert new == old or "SaveOnInterrupt" in repr(new), number
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_resuming_keeps_a_single_last_checkpoint(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, SignalAt(signal.SIGINT, 3))
    fit(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


class InterruptEvaluation(Callback):
    def __init__(self, number):
        self.number = number

    def on_test_batch_start(self, *args):
        os.kill(os.getpid(), self.number)

    on_validation_batch_start = on_predict_batch_start = on_test_batch_start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("predict", "stopped; finished shards are kept, run the same command again to go on\n"),
        ("test", "stopped; nothing was changed\n"),
        ("validate", "stopped; nothing was changed\n"),
    ],
)
def test_an_interrupt_outside_of_training_stops_with_one_line(
    make_module, make_trainer, digits, capsys, verb, said, number, code
):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(InterruptEvaluation(number), SaveOnInterrupt())
    with pytest.raises(SystemExit) as stop:
        getattr(trainer, verb)(make_module(), datamodule=digits)
    assert stop.value.code == code
    assert capsys.readouterr().out == said
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
