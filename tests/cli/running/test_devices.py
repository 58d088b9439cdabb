"""`--gpus`: what it fills in, what wins over it, what is said."""

from typing import Any

import pytest
import torch

from varlit.cli.running.devices import check_training, place
from varlit.errors import UserError

UNDECIDED = {"accelerator": "auto", "devices": "auto", "precision": "bf16-mixed"}


def machine(monkeypatch: pytest.MonkeyPatch, num_gpus: int, has_bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)


@pytest.mark.parametrize("gpus", ["auto", "1", "8"])
def test_without_gpus_it_runs_on_the_cpu_and_says_so(
    gpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0)
    found = place(gpus, UNDECIDED, False)
    assert (found.accelerator, found.devices, found.precision) == ("cpu", 1, "32-true")
    assert found.remark == "no GPU found: running on the CPU, in 32-true instead of bf16-mixed"


@pytest.mark.parametrize(("gpus", "devices"), [("auto", 4), ("2", 2)])
def test_gpus_are_used_as_asked(gpus: str, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)
    found = place(gpus, UNDECIDED, False)
    assert (found.accelerator, found.devices) == ("gpu", devices)
    assert (found.precision, found.remark) == ("bf16-mixed", "")


def test_zero_means_the_cpu_even_beside_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)
    assert place("0", UNDECIDED, False).accelerator == "cpu"


def test_more_gpus_than_there_are_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    with pytest.raises(UserError, match="this machine has 2"):
        place("8", UNDECIDED, False)


@pytest.mark.parametrize("gpus", ["x", "-1", "1.5", ""])
def test_a_word_is_no_number_of_gpus(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    with pytest.raises(UserError, match="--gpus wants"):
        place(gpus, UNDECIDED, False)


@pytest.mark.parametrize("explicit", [{"accelerator": "cpu"}, {"devices": "3"}])
def test_explicit_trainer_settings_win(
    explicit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 4)
    with pytest.warns(UserWarning, match="--gpus 2 is ignored"):
        found = place("2", UNDECIDED | explicit, False)
    assert {"accelerator": found.accelerator, "devices": found.devices}.items() >= explicit.items()


def test_a_precision_that_was_typed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0)
    assert place("auto", UNDECIDED, True).precision == "bf16-mixed"


def test_a_gpu_without_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 1, has_bf16=False)
    found = place("auto", UNDECIDED, False)
    assert found.precision == "32-true"
    assert "no bf16" in found.remark


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_refused_with_the_remedy(
    accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU was found here; leave it out: --gpus auto"):
        place("auto", UNDECIDED | {"accelerator": accelerator}, False)
    machine(monkeypatch, 1)
    assert place("auto", UNDECIDED | {"accelerator": accelerator}, False).accelerator == accelerator


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ({"gradient_clip_val": 1.0}, "model.optim.grad_clip"),
        ({"gradient_clip_algorithm": "norm"}, "model.optim.grad_clip"),
        ({"log_every_n_steps": 0}, "1 or more"),
        ({"max_epochs": -1}, "set --trainer.max_epochs or --trainer.max_steps"),
        ({"max_epochs": None, "max_time": "00:01:00:00"}, "schedules need a length"),
        ({"precision": "16-mixed"}, "32-true or bf16-mixed"),
        ({"precision": "bf16-true"}, "32-true or bf16-mixed"),
    ],
)
def test_what_a_fit_would_stumble_over_is_refused(setting: dict[str, Any], remedy: str) -> None:
    usual = {"max_epochs": 3, "max_steps": -1, "log_every_n_steps": 50, "precision": "bf16-mixed"}
    with pytest.raises(UserError, match=remedy):
        check_training("var", usual | setting)


@pytest.mark.parametrize(
    "setting",
    [{"max_epochs": -1, "max_steps": 5}, {"max_epochs": None}, {"precision": 32}, {}],
)
def test_what_trains_is_let_through(setting: dict[str, Any]) -> None:
    usual = {"max_epochs": 3, "max_steps": -1, "log_every_n_steps": 1, "precision": None}
    check_training("tokenizer", usual | setting)
