"""All else that is written: pictures, exports, configs, shards, samples, evidence, lists."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from varlit.callbacks import record
from varlit.callbacks.bad_steps import _write as write_evidence
from varlit.callbacks.best import KeepBest
from varlit.callbacks.drawing import publish
from varlit.callbacks.export import ExportWeights
from varlit.callbacks.record import MetricsFile, RunRecord
from varlit.callbacks.token_writer import _log
from varlit.cli import main as command_line
from varlit.cli.config.kept import KeptConfig
from varlit.data.bad_files import BadFile, BadFiles
from varlit.data.formats import folder_index
from varlit.data.formats.folders import open_folders
from varlit.data.packing import PackSettings, pack
from varlit.data.whole_files import write_bytes
from varlit.disks import UnwritableError, whole_file
from varlit.errors import UserError
from varlit.models.files import write_weights
from varlit.places import CACHE_VARIABLE
from varlit.training.evaluation_samples import SampleFile
from varlit.viz.grids import save_png
from varlit.viz.growing import save_gif

Limited = Callable[[int], contextlib.AbstractContextManager[None]]
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # 12 kB as PNG


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def trainer_in(folder: Path, **more: Any) -> Any:
    """What callbacks ask of a trainer that writes to a folder."""
    told = {"loggers": [], "default_root_dir": str(folder), "is_global_zero": True}
    told |= {"global_step": 1, "sanity_checking": False, "callback_metrics": {}}
    told |= {"estimated_stepping_batches": 10, "state": SimpleNamespace(fn=TrainerFn.FITTING)}
    return SimpleNamespace(**told | more)


@pytest.mark.parametrize("write", [save_png, lambda p, path: save_gif([p, 255 - p], path)])
def test_no_half_picture_is_left(
    tmp_path: Path, limited: Limited, write: Callable[[np.ndarray, Path], object]
) -> None:
    path = tmp_path / "a"
    write(PICTURE, path)
    before = files_in(tmp_path)
    with limited(3000), pytest.raises(OSError, match="large"):
        write(PICTURE[::-1], path)
    assert files_in(tmp_path) == before


def test_a_training_goes_on_without_pictures_and_lines(tmp_path: Path, limited: Limited) -> None:
    trainer = trainer_in(tmp_path)
    lines = MetricsFile(tmp_path / "metrics.jsonl", trainer)

    def train() -> None:
        for step in range(1, 8):
            trainer.global_step = step
            publish(trainer, "maps", PICTURE)
            lines.log_metrics({"loss/total": 1.25 * step, "loss/long_name": math.pi}, step)

    with pytest.warns(UserWarning, match="going on without") as told, limited(100):
        train()
    assert sorted(str(each.message).split("going on ")[1].split(" until")[0] for each in told) == [
        "without lines of numbers",
        "without pictures",
    ]
    lines.log_metrics({"loss/total": 0.5}, 7)
    written = [json.loads(line) for line in lines.path.read_text().splitlines()]
    assert written[-1] == {"step": 7, "loss/total": 0.5}, "no half line before it"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["metrics.jsonl"]


def test_a_training_starts_without_notes_on_its_environment(
    tmp_path: Path, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the true one: it asks git, which must not meet the limit amid its own files.
    monkeypatch.setattr(record, "describe_environment", lambda step: "fact " * 100)
    with pytest.warns(UserWarning, match="without notes on the environment"), limited(50):
        RunRecord().on_train_start(trainer_in(tmp_path), None)  # type: ignore[arg-type]
    assert files_in(tmp_path) == {}


def test_weights_are_exported_whole_or_not_at_all(tmp_path: Path, limited: Limited) -> None:
    path = tmp_path / "model.safetensors"
    write_weights({"w": torch.zeros(10)}, path)
    before = files_in(tmp_path)
    with limited(1000), pytest.raises(OSError, match="too large"):
        write_weights({"w": torch.ones(10_000)}, path)
    assert files_in(tmp_path) == before


class Exporting:
    """A module whose export is refused while `full`."""

    def __init__(self) -> None:
        self.full, self.exported = True, 0

    def export(self, folder: Path) -> None:
        if self.full:
            raise UnwritableError(folder / "model.safetensors", "No space left", "mend it")
        folder.mkdir(exist_ok=True)
        self.exported += 1


def test_an_export_is_made_good_at_the_next_save_and_the_last_must_succeed(tmp_path: Path) -> None:
    callback, module, trainer = ExportWeights(), Exporting(), trainer_in(tmp_path)
    with pytest.warns(UserWarning, match="without exports of the weights"):
        callback.on_save_checkpoint(trainer, module, {})  # type: ignore[arg-type]
    trainer.global_step = 10
    with pytest.raises(UserError, match="mend it"):
        callback.on_save_checkpoint(trainer, module, {})  # type: ignore[arg-type]
    module.full = False
    callback.on_save_checkpoint(trainer, module, {})  # type: ignore[arg-type]
    assert module.exported == 1


def test_the_best_is_what_lies_on_the_disk(tmp_path: Path) -> None:
    callback, module, trainer = KeepBest(), Exporting(), trainer_in(tmp_path)
    trainer.callback_metrics = {"val/psnr": torch.tensor(25.0)}
    with pytest.warns(UserWarning, match="without exports of the best weights"):
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert callback.best == {}
    module.full, trainer.callback_metrics = False, {"val/psnr": torch.tensor(24.0)}
    callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert callback.best == {"psnr": 24.0}
    assert json.loads((tmp_path / "best-psnr" / "score.json").read_text())["value"] == 24.0


def test_the_config_of_a_run_outlives_a_start_on_a_full_disk(
    tmp_path: Path, limited: Limited
) -> None:
    class Text:
        """A parser whose config is long."""

        def save(self, config: Any, path: str, **options: Any) -> None:
            Path(path).write_text("key: value\n" * 100)

    (tmp_path / "fit.yaml").write_text("of the start before\n")
    keeper = KeptConfig(Text(), None, config_filename="fit.yaml", overwrite=True)
    with limited(100), pytest.raises(UserError, match=r"cannot write .*fit\.yaml: File too large"):
        keeper.save_config(trainer_in(tmp_path), None, "fit")  # type: ignore[arg-type]
    assert files_in(tmp_path) == {"fit.yaml": b"of the start before\n"}


def test_evidence_of_a_bad_step_is_written_whole_or_not_at_all(
    tmp_path: Path, limited: Limited
) -> None:
    with limited(1000), pytest.raises(OSError, match="too large"):
        write_evidence(tmp_path / "bad-step-1.pt", {"batch": torch.zeros(10_000)})
    assert files_in(tmp_path) == {}


def test_the_log_of_a_cache_and_the_list_of_bad_files_may_be_lost(
    tmp_path: Path, limited: Limited
) -> None:
    (tmp_path / "tokens.log").write_text("x" * 100)
    (tmp_path / "bad_files.txt").write_text("x" * 100)
    with pytest.warns(UserWarning, match="without lines of the log"), limited(100):
        _log(tmp_path / "tokens", "finished")
    with pytest.warns(UserWarning, match="without names of bad files"), limited(100):
        BadFiles(tmp_path, num_images=10, max_share=0.5)._write(BadFile("a.png", "broken"))


def test_a_shard_is_told_with_its_name_and_leaves_nothing(tmp_path: Path, limited: Limited) -> None:
    with limited(1000), pytest.raises(UserError, match=r"train-00000.*File too large\. Free some"):
        write_bytes(tmp_path / "train-00000.tokens.npy", bytes(2000))
    assert files_in(tmp_path) == {}


def test_packing_that_met_a_full_disk_goes_on_to_the_same_bytes(
    tmp_path: Path, limited: Limited
) -> None:
    rng = np.random.default_rng(0)
    for row in range(4):
        path = tmp_path / "images" / f"class{row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 16 if row < 2 else 64
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    settings = PackSettings(shard_size=1, val_fraction=0.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pack(tmp_path / "images", whole, settings, num_workers=1)
    largest = max(path.stat().st_size for path in whole.glob("*.tar"))
    with limited(largest - 1), pytest.raises(UserError, match="File too large"):
        pack(tmp_path / "images", cut, settings, num_workers=1)
    assert not list(cut.rglob("*.part")), "a full disk is not filled further"
    pack(tmp_path / "images", cut, settings, num_workers=1)
    assert {p.name: p.read_bytes() for p in cut.glob("*.tar")} == {
        p.name: p.read_bytes() for p in whole.glob("*.tar")
    }


def test_samples_are_refused_in_a_line_at_each_of_their_steps(
    tmp_path: Path, limited: Limited
) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    file = SampleFile(folder, tmp_path / "samples.npz", count=4, side_px=32)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with limited(1000), pytest.raises(UserError, match="cannot write the samples"):
        file.begin()
    assert files_in(tmp_path) == {}
    file.begin()
    with limited(1000), pytest.raises(UserError, match=r"samples\.npy: File too large; free some"):
        file.write(torch.arange(4), images)
    file.write(torch.arange(4), images)
    with limited(1000), pytest.raises(UserError, match="cannot write the samples"):
        file.finish()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["samples.npy"]
    file.finish()
    written = torch.from_numpy(np.load(tmp_path / "samples.npz")["arr_0"])
    assert torch.equal(written.permute(0, 3, 1, 2), images)


def test_an_index_that_finds_no_room_is_made_again(
    tmp_path: Path, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    monkeypatch.setattr(folder_index, "FEWEST_NAMES", 1)  # small sets have none
    for row in range(4):
        save_png(PICTURE, tmp_path / "images" / f"class{row % 2}" / f"{row}.png")
    with limited(100):
        found = open_folders(str(tmp_path / "images"))["train"]
    assert len(found) == 4
    assert files_in(cache) == {}
    assert len(open_folders(str(tmp_path / "images"))["train"]) == 4
    assert files_in(cache)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO]
)
def test_any_verb_says_in_a_line_which_file_a_disk_refused(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: object) -> int:
        with whole_file(tmp_path / "a.png"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(command_line, "_run", refused)
    assert command_line.main(["sample"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"varlit: {tmp_path / 'a.png'}: ")
    assert ("MB free" in line) == (number in (errno.ENOSPC, errno.EDQUOT))
