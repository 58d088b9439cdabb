"""Each score keeps the weights of its best validation, over a resume too."""

import json
import math

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from varlit.callbacks.best import KeepBest


class Run:
    """A module that exports the step of its weights, and a trainer that reports scores."""

    def __init__(self, folder, is_global_zero=True):
        self.loggers, self.default_root_dir = [], folder
        self.is_global_zero, self.sanity_checking = is_global_zero, False
        self.state = type("State", (), {"fn": TrainerFn.FITTING})()
        self.global_step, self.callback_metrics = 0, {}

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(str(self.global_step))

    def validate(self, callback, step, **scores):
        self.global_step = step
        self.callback_metrics = {f"val/{n}": torch.tensor(v) for n, v in scores.items()}
        callback.on_validation_end(self, self)

    def kept(self):
        folders = self.default_root_dir.glob("best-*")
        return {f.name: int((f / "model.safetensors").read_text()) for f in folders}


def test_each_score_keeps_its_own_best_step(tmp_path):
    run, callback = Run(tmp_path), KeepBest()
    run.validate(callback, 1, psnr=20.0, lpips=0.3)
    run.validate(callback, 2, psnr=22.0, lpips=0.4)
    run.validate(callback, 3, psnr=21.0, lpips=0.2)
    run.validate(callback, 4, psnr=math.nan, lpips=math.nan)
    assert run.kept() == {"best-psnr": 2, "best-lpips": 3}
    score = json.loads((tmp_path / "best-psnr" / "score.json").read_text())
    assert score == {"score": "val/psnr", "value": 22.0, "step": 2}


def test_a_resumed_run_goes_by_the_scores_of_its_checkpoint(tmp_path):
    run, callback, resumed = Run(tmp_path), KeepBest(), KeepBest()
    run.validate(callback, 1, rfid=9.0)
    resumed.load_state_dict(callback.state_dict())
    run.validate(resumed, 2, rfid=9.5)
    assert run.kept() == {"best-rfid": 1}
    run.validate(resumed, 3, rfid=8.5)
    assert run.kept() == {"best-rfid": 3}


@pytest.mark.parametrize("case", ["off", "validate", "other rank", "nothing measured"])
def test_nothing_is_written_by(tmp_path, case):
    run, callback = Run(tmp_path, is_global_zero=case != "other rank"), KeepBest(case != "off")
    if case == "validate":
        run.state.fn = TrainerFn.VALIDATING
    run.validate(callback, 1, **({} if case == "nothing measured" else {"psnr": 1.0}))
    assert run.kept() == {}
