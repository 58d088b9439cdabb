"""TensorBoard's curves on a disk that is full for a while: late, and all of them."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from varlit.callbacks import curves
from varlit.callbacks.curves import Curves

Limited = Callable[[int], contextlib.AbstractContextManager[None]]
Mount = Callable[[str], Any]


def logger_in(folder: Path) -> Curves:
    return Curves(str(folder), "run", version="", default_hp_metric=False)


def log(logger: Curves, *steps: int) -> None:
    """As Lightning does at each logging step."""
    for step in steps:
        logger.log_metrics({"loss": float(step)}, step)
        logger.save()


def steps_in(folder: Path) -> list[int]:
    board = EventAccumulator(str(folder / "run")).Reload()
    return [event.step for event in board.Scalars("loss")]


def test_curves_are_read_as_tensorboard_writes_them(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    log(logger, 1, 2)
    logger.experiment.add_text("note", "words", 2)
    logger.finalize("success")
    again = logger_in(tmp_path)
    log(again, 3)
    again.finalize("success")
    # Two files of one second are read in the order of a counter's digits: 10 before 9.
    assert sorted(steps_in(tmp_path)) == [1, 2, 3]
    assert (tmp_path / "run" / "hparams.yaml").read_text() == "lr: 0.1\n"
    assert len(list((tmp_path / "run").glob("events.*"))) == 2, "a file a start"


def test_curves_that_a_disk_refused_are_written_later(tmp_path: Path, limited: Limited) -> None:
    logger = logger_in(tmp_path)
    log(logger, 1)
    (file,) = (tmp_path / "run").glob("events.*")
    half_a_record = limited(file.stat().st_size + 10)
    with half_a_record, pytest.warns(UserWarning, match="going on without curves") as told:
        log(logger, 2, 3)
    assert steps_in(tmp_path) == [1], "no half record, at which readers would stop"
    assert len(told) == 1
    log(logger, 4)
    logger.finalize("success")
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_what_is_held_in_memory_is_bounded_and_what_is_lost_is_said(
    tmp_path: Path, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "HELD_BYTES", 200)
    logger = logger_in(tmp_path)
    with warnings.catch_warnings(record=True) as told, limited(0):
        warnings.simplefilter("always")
        log(logger, *range(1, 100))
        event_file = logger.experiment.file_writer.event_writer
        assert len(event_file._held) < 400
        assert event_file.num_dropped > 50
    log(logger, 100)
    with pytest.warns(UserWarning, match="lacks curves"):
        logger.finalize("success")
    found = steps_in(tmp_path)
    assert found[0] == 1
    assert found[-1] == 100
    assert 2 < len(found) < 50
    assert sum("without curves" in str(warning.message) for warning in told) == 1


@pytest.mark.slow
def test_a_run_whose_disk_was_full_from_the_start_has_its_curves_in_the_end(
    tmp_path: Path, disk: Mount
) -> None:
    small = disk("size=64k")
    ballast = small.fill()
    logger = logger_in(small.folder)
    with pytest.warns(UserWarning, match=r"No space left on device \(0\.0 MB free\)"):
        log(logger, 1, 2)
    ballast.unlink()
    log(logger, 3)
    logger.finalize("success")
    assert steps_in(small.folder) == [1, 2, 3]


def test_no_half_of_the_hyperparameters_is_left(tmp_path: Path, limited: Limited) -> None:
    logger, path = logger_in(tmp_path), tmp_path / "run" / "hparams.yaml"
    logger.log_hyperparams({f"key{number}": number for number in range(100)})
    with pytest.warns(UserWarning, match="without hyperparameters"), limited(300):
        logger.save()
    assert not path.exists()
    logger.save()
    assert len(path.read_text().splitlines()) == 100
