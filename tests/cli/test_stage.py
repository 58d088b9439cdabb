"""Both stages from the command line, at toy size: runs, resumes, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from varlit.cli import main as command_line
from varlit.data.tokens.manifest import read_manifest
from varlit.models.files import load_tokenizer

TINY = [
    *("--model.tokenizer.num_res_blocks", "1"),
    *("--model.tokenizer.channel_multipliers", "[1,1,1,1]"),
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    *("--data.batch_size", "8", "--reconstructions.every_n_steps", "0"),
]
FIT = ["tokenizer", "fit", "-c", "digits", "--name", "tok", *TINY]


def run(*words: str) -> int:
    return command_line.main(list(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tokenizer trained for two steps, as the current folder."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("IMAGENET_DIR", raising=False)
        assert run(*FIT, "--trainer.max_steps", "2") == 0
        yield folder


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def test_a_run_leaves_its_settings_checkpoint_and_weights(folder: Path) -> None:
    names = {path.name for path in (folder / "runs" / "tok").iterdir()}
    assert names >= {"fit.yaml", "checkpoints", "config.json", "model.safetensors"}
    checkpoint = load(folder / "runs/tok/checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 2
    assert checkpoint["hyper_parameters"]["image_size"] == 32, "linked from the data"
    config = yaml.safe_load((folder / "runs/tok/fit.yaml").read_text())
    assert config["data"]["class_path"].endswith("DigitsDataModule")
    assert config["data"]["init_args"]["image_size"] == 32, "not the first choice's 256"
    assert "class_path" not in config["model"]["tokenizer"]


def test_a_dry_run_touches_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((folder / "runs").rglob("*"))
    assert run("tokenizer", "fit", "-c", "digits", "--name", "dry", "--dry_run") == 0
    told = capsys.readouterr().out
    assert "runs/dry" in told
    assert "parameters" in told
    assert sorted((folder / "runs").rglob("*")) == before


@pytest.mark.slow
def test_the_same_command_goes_on_and_test_keeps_its_settings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*FIT, "--trainer.max_steps", "3") == 0
    captured = capsys.readouterr()
    assert "resumed" in captured.out
    assert "arning" not in captured.err
    assert load(folder / "runs/tok/checkpoints/last.ckpt")["global_step"] == 3
    before = (folder / "runs/tok/fit.yaml").read_text()
    assert run("tokenizer", "test", "--name", "tok") == 0
    measures = json.loads((folder / "runs/tok/metrics.json").read_text())
    assert measures["test/psnr"] > 0
    assert "test/psnr" in capsys.readouterr().out
    assert (folder / "runs/tok/fit.yaml").read_text() == before
    assert (folder / "runs/tok/test.yaml").is_file()


def test_another_architecture_is_refused_and_leaves_the_run_as_it_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "runs/tok/fit.yaml").read_text()
    assert run(*FIT, "--model.tokenizer.codebook_size", "64") == 2
    told = capsys.readouterr().err
    assert "codebook_size" in told
    assert "64" in told
    assert (folder / "runs/tok/fit.yaml").read_text() == before


def test_the_first_start_is_silent_about_a_missing_checkpoint(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*FIT[:4], "--name", "new", *TINY, "--trainer.max_steps", "1") == 0
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_other_scales_start_from_a_run_in_parts_and_the_best_weights_are_a_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FIT[:4], "--name", "pair", *TINY, "--model.tokenizer.scales", "[2,4]"]
    words += ["--model.init_from", "tok", "--trainer.accumulate_grad_batches", "2"]
    words += ["--trainer.max_steps", "1", "--trainer.val_check_interval", "2"]
    words += ["--trainer.check_val_every_n_epoch", "null", "--model.optim.lr", "1e-9"]
    assert run(*words) == 0
    checkpoint = load(folder / "runs/pair/checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 1
    name = "network.encoder.conv_in.weight"
    start = load_tokenizer(folder / "runs/tok").state_dict()[name.removeprefix("network.")]
    assert torch.allclose(checkpoint["state_dict"][name], start, atol=1e-6)
    best = folder / "runs/pair/best-psnr"
    assert load_tokenizer(best).config.scales == (2, 4)
    assert json.loads((best / "score.json").read_text())["step"] == 1
    capsys.readouterr()
    assert run(*words[:-2], "--model.init_from", "tik", "--name", "other") == 2
    assert "model.init_from tik" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_are_counted_alike_everywhere_with_two_players_and_in_parts(folder: Path) -> None:
    words = [*FIT[:4], "--name", "count", *TINY, "--trainer.max_steps", "4"]
    words += ["--model.loss.disc_weight", "0.4", "--model.loss.disc_start", "0.5"]
    words += ["--model.discriminator.num_layers", "1", "--model.discriminator.channels", "32"]
    words += ["--trainer.accumulate_grad_batches", "2", "--trainer.log_every_n_steps", "2"]
    words += ["--checkpoint.every_n_steps", "3", "--checkpoint.keep_every_n_steps", "1"]
    words += ["--trainer.val_check_interval", "4", "--trainer.check_val_every_n_epoch", "null"]
    assert run(*words) == 0
    checkpoints = folder / "runs/count/checkpoints"
    steps = {path.stem: load(path)["global_step"] for path in checkpoints.iterdir()}
    last = {"last": 4, "last-previous": 3}
    assert steps == {"0000001": 1, "0000002": 2, "0000003": 3, "0000004": 4, **last}
    lines = map(json.loads, (folder / "runs/count/metrics.jsonl").read_text().splitlines())
    logged = [(line["step"], "gan/disc_loss" in line, "val/psnr" in line) for line in lines]
    assert logged == [(2, 0, 0), (2, 0, 1), (4, 1, 0), (4, 0, 1)]
    board = EventAccumulator(str(folder / "runs/count")).Reload()
    for tag in ("loss/total", "optim/lr", "optim/grad_norm", "val/psnr"):
        assert [event.step for event in board.Scalars(tag)] == [2, 4], tag
    assert [event.step for event in board.Scalars("gan/disc_loss")] == [4]


@pytest.mark.slow
def test_tokens_are_cached_and_var_trains_on_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tokenizer", "predict", "--name", "tok", "--data.batch_size", "300") == 0
    assert "varlit var fit" in capsys.readouterr().out
    words = ["--data.tokens", "tok", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    words += ["--model.var.depth", "1", "--samples.every_n_steps", "0"]
    assert run("var", "fit", "-c", "digits", *words) == 0
    checkpoint = load(folder / "runs/var-digits/checkpoints/last.ckpt")
    assert checkpoint["hyper_parameters"]["num_classes"] == 10, "linked from the cache"
    assert Path(checkpoint["hyper_parameters"]["tokenizer"]).name == "tokenizer"
    assert run("var", "validate", "--name", "var-digits") == 0
    assert "val/loss/mean" in capsys.readouterr().out


def test_a_test_that_measured_nothing_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = folder / "runs/tok/metrics.json"
    measured.write_text(json.dumps({"psnr": 1.5}))
    assert run("tokenizer", "test", "--name", "tok", "--trainer.limit_test_batches", "0") == 2
    told = capsys.readouterr().err
    assert "nothing was measured" in told
    assert "data.val_fraction" in told
    assert json.loads(measured.read_text()) == {"psnr": 1.5}


def test_a_damaged_checkpoint_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "runs/broken/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK not a checkpoint")
    assert run(*FIT[:4], "--name", "broken", *TINY, "--trainer.max_steps", "1") == 2
    assert str(path.relative_to(folder)) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        (["tokenizer", "fit", "-c", "imagenet256"], ["IMAGENET_DIR", "CONF=digits"]),
        (["tokenizer", "fit", "-c", "folder"], ["data.root"]),
        (["tokenizer", "fit", "-c", "folder", "--data.root", "nowhere"], ["nowhere"]),
        (["var", "fit", "-c", "d16"], ["cache-tokens NAME=", "train-tokenizer", "CONF=digits"]),
        (["var", "fit", "-c", "d16", "--data.tokens", "runs/x/tokens"], ["NAME=x`"]),
        (["tokenizer", "test", "--name", "typo"], ["--name"]),
        (["tokenizer", "fit", "-c", "digits", "--root", "file"], ["file", "--root"]),
        (["tokenizer", "fit", "-c", "digits", "--ckpt_path", "x.ckpt"], ["x.ckpt"]),
        (["tokenizer", "fit", "-c", "digits", "--trainer.gradient_clip_val", "1"], ["grad_clip"]),
        (["tokenizer", "fit", "-c", "digits", "--trainer.precision", "bf16-true"], ["bf16-mixed"]),
        (["tokenizer", "fit", "-c", "digits", "--trainer.max_epochs", "-1"], ["max_steps"]),
        (["var", "test", "--name", "var-d16"], ["varlit var fit -c d16", "CONF=digits"]),
        (["tokenizer", "fit", "-c", "digits", "--model.tokenizer.scales", "[1,2]"], ["[1,2,3,4]"]),
    ],
)
@pytest.mark.slow
def test_what_is_missing_is_said_with_its_remedy(
    words: list[str], remedies: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert all(remedy in told for remedy in remedies), told
    assert len(told.splitlines()) <= 2


@pytest.mark.slow
def test_two_processes_train_the_tokenizer_by_ddp(folder: Path) -> None:
    words = [*FIT[:4], "--name", "ddp", *TINY, "--trainer.max_steps", "1"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    words += ["--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "varlit", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training TokenizerModule") == 1, "only the first process speaks"
    assert load(folder / "runs/ddp/checkpoints/last.ckpt")["global_step"] == 1


@pytest.mark.slow
@pytest.mark.soak
def test_a_process_without_a_shard_does_not_hold_up_the_cache(folder: Path) -> None:
    words = ["tokenizer", "predict", "--name", "tok", "--data.batch_size", "300"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    words += ["--trainer.strategy", "ddp", "--cache.folder", str(folder / "shared-cache")]
    command = [sys.executable, "-m", "varlit", *words]
    for _ in range(2):  # the second finds all shards finished
        (folder / "shared-cache" / "manifest.json").unlink(missing_ok=True)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert read_manifest(folder / "shared-cache").count("train") == 1500
        lines = done.stdout.splitlines()
        cached = [i for i, line in enumerate(lines) if line.startswith("cached 1,500 train")]
        assert len(cached) == 1
        assert lines[cached[0] + 1].startswith("next: ")


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_interrupted_encoding_says_how_to_go_on(folder: Path, num_processes: int) -> None:
    cache = folder / f"cut-{num_processes}"
    words = ["tokenizer", "predict", "--name", "tok", "--data.batch_size", "2"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", str(num_processes)]
    words += ["--cache.folder", str(cache), "--cache.shard_size", "50"]
    command = [sys.executable, "-m", "varlit", *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    while process.poll() is None and not (cache / "train-00000.json").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    told, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    line = "stopped; finished shards are kept, run the same command again to go on\n"
    assert told.count(line) == 1
    assert not (cache / "manifest.json").exists()


@pytest.mark.slow
def test_encoding_needs_no_weights_of_the_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VARLIT_LPIPS_SQUEEZE", str(folder / "nowhere.pth"))
    wants = ["--model.loss.perceptual_weight", "1", "--model.loss.perceptual_net", "squeeze"]
    common = ["--name", "tok", *TINY, *wants]
    assert run("tokenizer", "validate", *common) == 2
    assert "nowhere.pth" in capsys.readouterr().err
    assert run("tokenizer", "predict", *common, "--cache.folder", str(folder / "elsewhere")) == 0
    assert read_manifest(folder / "elsewhere").count("train") == 1500
