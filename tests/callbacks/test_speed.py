import time

import pytest
from lightning.pytorch import Callback

from varlit.callbacks.speed import SpeedWatch
from varlit.data.digits import DigitsDataModule, TensorImages

pytestmark = pytest.mark.filterwarnings("ignore")


class Readings(Callback):
    """Keeps what is logged at every step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, *_):
        self.keep(trainer)

    def on_train_end(self, trainer, *_):
        self.keep(trainer)

    def keep(self, trainer):
        speed = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("speed/")}
        if speed:
            self.seen[trainer.global_step] = speed


def watched(make_trainer, make_module, data, **settings):
    readings = Readings()
    trainer = make_trainer(SpeedWatch(), readings, **settings)
    trainer.fit(make_module(), data)
    return readings.seen


def test_speed_is_logged_on_log_steps(make_trainer, make_module, digits):
    seen = watched(make_trainer, make_module, digits, max_steps=6, log_every_n_steps=3)
    assert {3, 6} <= set(seen)
    for speed in seen.values():
        assert speed["speed/images_per_s"] > 0
        assert 0 <= speed["speed/data_wait"] <= 1
        assert "speed/mfu" not in speed, "a CPU has no peak to be measured against"


def test_sleeping_data_are_seen_as_waiting(make_trainer, make_module, monkeypatch):
    read = TensorImages.__getitem__

    def slowly(self, index):
        time.sleep(0.05)
        return read(self, index)

    monkeypatch.setattr(TensorImages, "__getitem__", slowly)
    data = DigitsDataModule(batch_size=300)
    speed = watched(make_trainer, make_module, data, max_steps=4, log_every_n_steps=4)[4]
    total_s = 4 * 300 / speed["speed/images_per_s"]
    assert speed["speed/data_wait"] * total_s >= 4 * 0.05, "four batches slept"


def test_it_can_be_turned_off(make_trainer, make_module, digits):
    readings = Readings()
    make_trainer(SpeedWatch(enabled=False), readings).fit(make_module(), digits)
    assert readings.seen == {}
