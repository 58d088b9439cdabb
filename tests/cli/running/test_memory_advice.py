"""Memory that runs out ends in advice which, followed, ends in a training of the same batch."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from varlit.callbacks.token_writer import TokenWriter
from varlit.cli import main as command_line
from varlit.cli.running.memory_advice import advice, exhausted, more_parts
from varlit.training.tokenizer import TokenizerModule

GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
)
TINY = [
    *("tokenizer", "fit", "-c", "digits", "--model.tokenizer.num_res_blocks", "1"),
    *("--model.tokenizer.channel_multipliers", "[1,1,1,1]", "--trainer.max_steps", "1"),
    *("--trainer.limit_val_batches", "0", "--reconstructions.every_n_steps", "0"),
]


def trainer_of(num_devices: int = 1, parts: int = 1, *callbacks: object) -> Any:
    told = {"world_size": num_devices, "accumulate_grad_batches": parts}
    return SimpleNamespace(**told, callbacks=list(callbacks))


def test_errors_of_memory_are_known_and_no_others() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert exhausted(caught.value) == "memory", "torch's own words of the CPU"
    assert exhausted(MemoryError()) == "memory"
    assert exhausted(GPU) == "GPU memory"
    assert exhausted(RuntimeError("CUDA error: out of memory")) == "GPU memory"
    assert exhausted(RuntimeError("shape '[2]' is invalid")) == ""
    assert exhausted(ValueError("not enough memory: you tried to allocate")) == ""


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "parts", "expected"),
    [
        (256, 1, 1, 2),
        (256, 8, 2, 4),
        (12, 2, 1, 2),
        (12, 2, 2, 6),  # 6 images a device in 2 parts of 3: 4 and 5 do not divide them
        (9, 1, 1, 3),
        (7, 1, 1, 7),
        (8, 8, 1, 0),
        (8, 2, 4, 0),
    ],
)
def test_parts_are_equal_and_hold_half_or_less(
    batch_size: int, num_devices: int, parts: int, expected: int
) -> None:
    found = more_parts(batch_size, num_devices, parts)
    assert found == expected
    if found:
        assert batch_size % (num_devices * found) == 0
        assert batch_size // found <= batch_size // parts / 2


@pytest.mark.parametrize(
    ("verb", "flag"),
    [
        ("fit", "--trainer.accumulate_grad_batches 4"),
        ("validate", "--data.batch_size 32"),
        ("test", "--data.batch_size 32"),
        ("predict", "--cache.batch_size 50"),
    ],
)
def test_each_verb_has_its_own_advice(verb: str, flag: str) -> None:
    trainer = trainer_of(2, 2, TokenWriter(batch_size=100))
    told = advice(verb, GPU, trainer, SimpleNamespace(batch_size=64))  # type: ignore[arg-type]
    assert told.startswith("out of GPU memory (CUDA out of memory. Tried to allocate 2.00 GiB")
    assert told.endswith(flag)
    assert ("global batch of 64" in told) == (verb == "fit")


def test_one_image_at_a_time_is_not_halved() -> None:
    told = advice("fit", GPU, trainer_of(8, 1), SimpleNamespace(batch_size=8))  # type: ignore[arg-type]
    assert "accumulate" not in told
    assert "smaller model" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [GPU, MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
    ids=["gpu", "python", "cpu"],
)
def test_advice_that_is_followed_fits(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, seen = TokenizerModule.training_step, []

    def step_of_two_images(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.append(len(batch["image"]))
        if seen[-1] > 2:
            raise error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TokenizerModule, "training_step", step_of_two_images)
    words = [*TINY, "--data.batch_size", "8", "--root", str(tmp_path), "--name", "tok"]
    for parts in (2, 4):
        assert command_line.main(words) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert "keep the global batch of 8" in told
        found = re.search(r"--trainer\.accumulate_grad_batches (\d+)", told)
        assert found is not None
        assert int(found[1]) == parts
        words = [*words, *found[0].split()]
    assert command_line.main(words) == 0
    assert seen == [8, 4, 2, 2, 2, 2]


def test_other_verbs_say_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(command_line, "_run", run)
    assert command_line.main(["info"]) == 2
    assert "out of memory" in capsys.readouterr().err
