"""Whole commands on disks that are too small: how they end, and that they go on as if not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from varlit.callbacks.interrupt import SaveOnInterrupt
from varlit.cli import main as command_line
from varlit.training.checkpoint_files import newest_whole

Mount = Callable[[str], Any]
pytestmark = pytest.mark.slow

NUM_STEPS = 4
TINY = [
    *("tokenizer", "fit", "-c", "digits", "--name", "tok"),
    *("--model.tokenizer.num_res_blocks", "1"),
    *("--model.tokenizer.channel_multipliers", "[1,1,1,1]"),
    *("--trainer.limit_val_batches", "1", "--data.batch_size", "8"),
    *("--trainer.max_steps", str(NUM_STEPS), "--trainer.log_every_n_steps", "1"),
]
NO_PICTURES = ["--reconstructions.every_n_steps", "0"]


def fit(root: Path, *words: str) -> int:
    return command_line.main([*TINY, "--root", str(root), *words])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a training that nothing has disturbed, and its weights."""
    root = tmp_path_factory.mktemp("whole")
    assert fit(root, *NO_PICTURES, "--checkpoint.every_n_steps", "1") == 0
    return root / "tok"


def assert_same_end(run: Path, whole: Path) -> None:
    found, expected = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (run, whole)
    )
    assert found["global_step"] == expected["global_step"] == NUM_STEPS
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    for key, slots in expected["optimizer_states"][0]["state"].items():
        for slot, value in slots.items():
            assert torch.equal(found["optimizer_states"][0]["state"][key][slot], value)
    exported = "model.safetensors"
    assert (run / exported).read_bytes() == (whole / exported).read_bytes()


def test_a_training_that_cannot_save_stops_and_goes_on_when_there_is_room(
    whole: Path, disk: Mount, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (whole / "checkpoints" / "last.ckpt").stat().st_size
    size += (whole / "model.safetensors").stat().st_size
    small = disk(f"size={int(1.6 * size)}")  # a checkpoint and the weights, and not two
    words = [*NO_PICTURES, "--checkpoint.every_n_steps", "1"]
    assert fit(small.folder, *words) == 2
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if "cannot write" in line]
    assert "last.ckpt: No space left on device" in line
    assert "MB free" in line
    assert "same command" in line
    assert "Traceback" not in told
    assert not [name for name in small.names() if ".tmp" in name]
    found = newest_whole(small.folder / "tok" / "checkpoints")
    assert found.path is not None
    assert not found.damaged
    step = torch.load(found.path, weights_only=True)["global_step"]
    assert 1 <= step < NUM_STEPS
    small.remount("size=64m")
    assert fit(small.folder, *words) == 0
    assert "resumed" in capsys.readouterr().out
    assert_same_end(small.folder / "tok", whole)


def test_a_training_outlives_a_disk_that_is_full_between_its_saves(
    whole: Path,
    disk: Mount,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    small = disk("size=64m")
    ballast: list[Path] = []
    watch = SaveOnInterrupt.on_train_batch_end

    def fill_for_a_while(self: Any, trainer: Any, *args: Any) -> None:
        watch(self, trainer, *args)
        if trainer.global_step == 1:
            ballast.append(small.fill())
        elif trainer.global_step == NUM_STEPS - 1:
            ballast.pop().unlink()

    monkeypatch.setattr(SaveOnInterrupt, "on_train_batch_end", fill_for_a_while)
    words = ["--reconstructions.every_n_steps", "1", "--checkpoint.every_n_steps", "0"]
    assert fit(small.folder, *words) == 0
    run = small.folder / "tok"
    told = [str(each.message) for each in recwarn if "going on without" in str(each.message)]
    kinds = [text.split("going on without ")[1].split(" until")[0] for text in told]
    assert "curves" in kinds
    assert "pictures" in kinds
    assert "No space left" in told[0]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    board = EventAccumulator(str(run)).Reload()
    steps = [event.step for event in board.Scalars("loss/total")]
    assert steps == list(range(1, NUM_STEPS + 1)), "curves are late, not lost"
    assert not [name for name in small.names() if ".tmp" in name]
    assert_same_end(run, whole)


def test_an_export_that_failed_at_the_end_is_made_by_the_same_command(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*NO_PICTURES, "--checkpoint.every_n_steps", "3"]
    in_the_way = tmp_path / "tok" / "model.safetensors"
    in_the_way.mkdir(parents=True)
    assert fit(tmp_path, *words) == 2
    told = capsys.readouterr().err
    assert "cannot write" in told
    assert "Traceback" not in told
    in_the_way.rmdir()
    assert fit(tmp_path, *words) == 0
    assert_same_end(tmp_path / "tok", whole)


@pytest.mark.parametrize(
    ("options", "remount", "reason"),
    [
        ("size=1m", "ro", "ead-only file system"),
        ("size=4k", "", "o space left"),
        ("size=1m,nr_inodes=3", "", "no inodes left"),
    ],
)
def test_a_start_where_nothing_can_be_written_is_refused_in_a_line(
    disk: Mount, options: str, remount: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = disk(options)
    if remount:
        small.remount(remount)
    assert fit(small.folder, *NO_PICTURES) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "--root" in told
    assert len([line for line in told.splitlines() if "warning" not in line]) <= 2, told
    assert not [name for name in small.names() if ".tmp" in name]


def test_a_token_cache_goes_on_to_the_same_bytes(
    whole: Path, disk: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizer", "predict", "--name", "tok", "--root", str(whole.parent)]
    words += ["--data.batch_size", "300", "--cache.shard_size", "50"]
    assert command_line.main([*words, "--cache.folder", str(tmp_path / "tokens")]) == 0
    small = disk("size=256k")
    cut = [*words, "--cache.folder", str(small.folder / "tokens")]
    capsys.readouterr()
    assert command_line.main(cut) == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "finished shards are kept" in told
    assert "Traceback" not in told
    kept = [name for name in small.names() if name.endswith(".json") and "-000" in name]
    assert kept
    assert not (small.folder / "tokens" / "manifest.json").exists()
    assert not [name for name in small.names() if "/." in name], "no half file"
    stamps = {name: (small.folder / name).stat().st_mtime_ns for name in kept}
    small.remount("size=16m")
    assert command_line.main(cut) == 0
    assert {n: (small.folder / n).stat().st_mtime_ns for n in kept} == stamps, "not written again"
    expected = {p.relative_to(tmp_path): p for p in (tmp_path / "tokens").rglob("*") if p.is_file()}
    assert expected
    for name, path in expected.items():
        assert (small.folder / name).read_bytes() == path.read_bytes(), name
