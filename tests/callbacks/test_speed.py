import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.speed import SpeedWatch
from varlit.data.digits import DigitsDataModule, TensorImages
from varlit.ops.costs import BF16_PEAK_TFLOPS

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


def test_all_devices_count_for_images_and_one_for_the_share_of_its_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    watch = SpeedWatch()
    watch._busy_s, watch._num_images = 1.5, 40
    watch._waited_before_s = 1.0
    trainer = SimpleNamespace(world_size=8, train_dataloader=SimpleNamespace(waited_s=1.5))
    module = SimpleNamespace(
        device=torch.device("cuda"), tokens_per_image=10, training_flops_per_image=9.89e12
    )
    assert watch._scalars(trainer, module) == pytest.approx(
        {
            "speed/images_per_s": 8 * 20,
            "speed/tokens_per_s": 8 * 20 * 10,
            "speed/data_wait": 0.25,
            "speed/peak_gib": 1.5,
            "speed/mfu": 20 * 9.89e12 / (1e12 * BF16_PEAK_TFLOPS["H100"]),
        }
    )


def test_it_can_be_turned_off(make_trainer, make_module, digits):
    readings = Readings()
    make_trainer(SpeedWatch(enabled=False), readings).fit(make_module(), digits)
    assert readings.seen == {}
