"""What a training starts from when files are damaged, and that it then ends at the same bits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from varlit.cli import main as command_line
from varlit.cli.running import resume
from varlit.cli.running.resume import find, put_aside
from varlit.errors import UserError
from varlit.training.checkpoint_files import SealedFiles

TINY = [
    *("tokenizer", "fit", "-c", "digits"),
    *("--model.tokenizer.num_res_blocks", "1"),
    *("--model.tokenizer.channel_multipliers", "[1,1,1,1]"),
    *("--trainer.limit_val_batches", "0", "--data.batch_size", "8"),
    *("--reconstructions.every_n_steps", "0", "--checkpoint.every_n_steps", "1"),
]
NUM_STEPS = 4


def words(name: str, steps: int = NUM_STEPS) -> list[str]:
    return [*TINY, "--name", name, "--trainer.max_steps", str(steps)]


def run(*line: str) -> int:
    return command_line.main(list(line))


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a whole training of four steps, as the current folder."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*words("whole")) == 0
        yield folder


def checkpoints(name: str) -> Path:
    return Path("runs") / name / "checkpoints"


def assert_ends_as_the_whole(name: str) -> None:
    found, whole = (load(checkpoints(n) / "last.ckpt") for n in (name, "whole"))
    assert found["global_step"] == whole["global_step"] == NUM_STEPS
    for weight, value in whole["state_dict"].items():
        assert torch.equal(found["state_dict"][weight], value), weight
    for key, slots in whole["optimizer_states"][0]["state"].items():
        for slot, value in slots.items():
            assert torch.equal(found["optimizer_states"][0]["state"][key][slot], value)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "last.ckpt: it is cut off"),
        (flip, "sha256"),
        (replace_by_a_folder, "a folder"),
        (Path.unlink, "missing"),
    ],
)
@pytest.mark.slow
def test_a_training_goes_on_from_the_one_before_to_the_same_bits(
    folder: Path,
    damage: Callable[[Path], None],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"hurt-{damage.__name__}"
    copy_of_the_whole(name)
    damage(checkpoints(name) / "last.ckpt")
    assert run(*words(name), "--dry_run") == 0
    assert not list(checkpoints(name).glob("*.damaged")), "a dry run touches nothing"
    assert "last-previous.ckpt" in capsys.readouterr().out
    assert run(*words(name)) == 0
    told = capsys.readouterr().out
    assert f"passed over {checkpoints(name)}/last.ckpt" in told
    assert reason in told
    assert f"the newest whole checkpoint is {checkpoints(name)}/last-previous.ckpt" in told
    assert_ends_as_the_whole(name)
    previous = load(checkpoints(name) / "last-previous.ckpt")
    assert previous["global_step"] == NUM_STEPS - 1, "the whole one was not lost to the damaged"
    assert (checkpoints(name) / "last.ckpt.damaged").exists() == (damage is not Path.unlink)


def copy_of_the_whole(name: str) -> None:
    checkpoints(name).mkdir(parents=True)
    for file in ("last.ckpt", "last-previous.ckpt"):
        (checkpoints(name) / file).write_bytes((checkpoints("whole") / file).read_bytes())


def test_none_whole_is_refused_and_nothing_is_touched(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of_the_whole("none")
    for path in checkpoints("none").iterdir():
        cut(path)
    before = {path.name: path.read_bytes() for path in checkpoints("none").iterdir()}
    for _ in range(2):
        assert run(*words("none")) == 2
        told = capsys.readouterr().err
        assert "no checkpoint of this run is whole" in told
        assert "--name" in told
        assert {p.name: p.read_bytes() for p in checkpoints("none").iterdir()} == before


def test_a_damaged_file_that_was_asked_for_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of_the_whole("asked")
    path = checkpoints("asked") / "last.ckpt"
    flip(path)
    assert run(*words("asked"), "--ckpt_path", str(path)) == 2
    assert "sha256" in capsys.readouterr().err


def test_the_best_state_is_kept_by_a_named_score(folder: Path) -> None:
    line = words("best", 3)
    line[line.index("--trainer.limit_val_batches") + 1] = "1"
    line += ["--trainer.val_check_interval", "1", "--trainer.check_val_every_n_epoch", "null"]
    line += ["--checkpoint.keep_best", "val/psnr", "--checkpoint.keep_best_mode", "max"]
    assert run(*line) == 0
    lines = map(json.loads, Path("runs/best/metrics.jsonl").read_text().splitlines())
    scores = {line["step"]: line["val/psnr"] for line in lines if "val/psnr" in line}
    assert len(scores) == 3
    best = load(checkpoints("best") / "best.ckpt")
    step = max(scores, key=scores.get)
    assert best["global_step"] == step
    assert best["callbacks"]["Checkpoint"]["best_score"] == pytest.approx(scores[step])
    assert "optimizer_states" in best, "it can be gone on from"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--checkpoint.keep_best", "val/psnr"], "--checkpoint.keep_best_mode max"),
        (["--checkpoint.keep_last", "0"], "1 or more"),
    ],
)
def test_a_policy_that_would_lose_things_is_refused(
    folder: Path, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words("policy"), *flags) == 2
    assert told in capsys.readouterr().err


def test_a_change_is_told_against_the_checkpoint_and_not_the_last_start(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of_the_whole("change")
    flags = ["--model.optim.lr", "0.5", "--checkpoint.every_n_steps", "7"]
    assert run(*words("change", NUM_STEPS + 1), *flags) == 0
    told = capsys.readouterr().out
    assert "model.optim.lr" in told
    assert "-> 0.5" in told


def test_a_second_training_of_a_run_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from varlit.cli.running.lock import RunLock

    copy_of_the_whole("twice")
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            RunLock(Path("runs/twice")).take()
            os.write(done, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        assert run(*words("twice")) == 2
        assert f"process {child} on" in capsys.readouterr().err
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert run(*words("twice")) == 0, "what a killed process held is free"


def test_a_missing_run_is_fresh_for_a_training_and_refused_elsewhere(tmp_path: Path) -> None:
    assert find("last", tmp_path, "train", may_be_new=True).path is None
    assert find(None, tmp_path, "train", may_be_new=False).path is None
    with pytest.raises(UserError, match="train first: train"):
        find("last", tmp_path, "train", may_be_new=False)
    with pytest.raises(UserError, match="no such file"):
        find("x.ckpt", tmp_path, "train", may_be_new=True)


def test_only_what_the_next_save_would_move_on_is_put_aside(tmp_path: Path) -> None:
    content = {"hyper_parameters": {}, "global_step": 1}
    for name in ("0000000.ckpt", "0000001.ckpt", "last.ckpt"):
        SealedFiles().save_checkpoint(content, tmp_path / "checkpoints" / name)
    SealedFiles().save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    flip(tmp_path / "checkpoints" / "last.ckpt")
    flip(tmp_path / "checkpoints" / "last-previous.ckpt")
    flip(tmp_path / "checkpoints" / "0000001.ckpt")
    found = find("last", tmp_path, "train", may_be_new=True)
    put_aside(found.damaged)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [
        *("0000000.ckpt", "0000001.ckpt"),
        *("last-previous.ckpt.damaged", "last.ckpt.damaged"),
    ]


def test_only_a_check_that_takes_long_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    monkeypatch.setattr(resume, "newest_whole", lambda folder: resume.Newest(path, []))
    for size, told in ((2**31, ""), (2**31 + 1, f"varlit: checking {path}, 2.1 GB\n")):
        path.touch()
        os.truncate(path, size)  # without content: it takes no room
        assert find("last", tmp_path, "train", may_be_new=True).path == path
        assert capsys.readouterr().out == told


KILLED = """
import os, sys
from varlit.cli import main
from varlit.training import checkpoint_files, sealing

where, save = sys.argv[1], int(sys.argv[2])
count = [0]

def dying(act):
    def acting(*args, **kwargs):
        if count[0] == save:
            os._exit(137)
        return act(*args, **kwargs)
    return acting

whole = sealing.write_sealed
def counting(*args, **kwargs):
    count[0] += 1
    return whole(*args, **kwargs)

checkpoint_files.write_sealed = counting
if where == "writing":
    draw = dying(sealing._Summed.write)
    sealing._Summed.write = lambda self, data: draw(self, data) if len(data) > 9000 else (
        self.sum.update(data), self._file.write(data))[1]
elif where == "syncing":
    sealing.os.fsync = dying(os.fsync)
elif where == "renaming":
    checkpoint_files.sync_folder = dying(checkpoint_files.sync_folder)
sys.exit(main.main(sys.argv[3:]))
"""


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("where", ["writing", "syncing", "renaming"])
@pytest.mark.parametrize("save", [1, 3])
def test_a_training_killed_in_the_middle_of_a_save_ends_at_the_same_bits(
    folder: Path, where: str, save: int
) -> None:
    name = f"killed-{where}-{save}"
    command = [sys.executable, "-c", KILLED, where, str(save), *words(name)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == 137, killed.stderr
    left = sorted(path.name for path in checkpoints(name).iterdir())
    assert any(".tmp" in file for file in left)
    assert run(*words(name)) == 0
    assert_ends_as_the_whole(name)
    assert not list(checkpoints(name).glob("*.tmp*")), "nothing piles up"
