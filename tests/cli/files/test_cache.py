"""The token cache on the command line, with real image files and a tokenizer of toy size."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.cli import main as command_line
from varlit.data.tokens.manifest import read_manifest
from varlit.data.tokens.module import TokenDataModule
from varlit.models.config import TokenizerConfig
from varlit.models.files import load_tokenizer, save_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE

SMALL = TokenizerConfig(32, (1, 1, 1), 1, 0.0, 64, 8, (1, 2, 4))  # 16 px
NUM_IMAGES = 24
PREDICT = ["tokenizer", "predict", "-c", "folder", "--name", "tok", "--data.root", "photos"]
PREDICT += ["--data.image_size", "16", "--data.num_workers", "0", "--data.val_fraction", "0.25"]
PREDICT += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--cache.shard_size", "4"]


def draw_photos(folder: Path, num_images: int = NUM_IMAGES) -> None:
    generator = np.random.default_rng(0)
    for number in range(num_images):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + number % 5, 30, 3) if number % 3 else (30, 20, 3)
        small = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize(size[:2], Image.Resampling.BICUBIC).save(path, quality=90)


def make_tokenizer(folder: Path, seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    network = VQVAE(SMALL).eval()
    torch.nn.init.normal_(network.quantizer.codebook.weight, std=0.3)
    save_tokenizer(network, folder)
    return network


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with photos/, runs/tok and its cache of ten crops."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    try:
        draw_photos(Path("photos"))
        make_tokenizer(Path("runs/tok"))
        assert command_line.main(PREDICT) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that may be damaged."""
    subprocess.run(["cp", "-r", f"{built}/.", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_cache_holds_ten_random_crops_and_the_centre_of_held_out_images(built: Path) -> None:
    cache = built / "runs/tok/tokens"
    manifest = read_manifest(cache)
    assert manifest.spec.num_crops == {"train": 10, "val": 1}
    assert (manifest.count("train"), manifest.count("val")) == (18, 6)
    tokens = np.load(cache / "train-00000.tokens.npy")
    assert tokens.shape == (4, 10, 21)
    assert len({crop.tobytes() for crop in tokens[1]}) > 1, "the crops differ"


def test_info_prints_the_manifest_for_people(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["cache", "info", "tok"]) == 0
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines()]
    assert ["train", "18", "0", "10", "5"] in [row[:5] for row in rows]
    assert ["val", "6", "0", "1", "2"] in [row[:5] for row in rows]
    for part in ("2: cat, dog", "train: 10 random ones, val: the centre", "sides 1 2 4"):
        assert part in told
    assert "class varlit.data.images.ImageDataModule" in told
    assert f"torch {torch.__version__}" in told


def test_verify_finds_every_image_as_it_was_encoded(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["cache", "verify", "tok", "--share", "1", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "7 shard(s)" in told
    assert "every checksum fits" in told
    assert "24 of 24 images encoded again" in told
    assert "24 equal" in told


def test_verify_samples_at_random(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "verify", "tok", "--share", "0.01", "--seed", "3", "--device", "cpu"]
    assert command_line.main(words) == 0
    assert "images encoded again (--seed 3)" in capsys.readouterr().out


def test_verify_names_an_image_that_was_changed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = Path("photos/dog/07.jpg")
    Image.new("RGB", Image.open(victim).size, "red").save(victim)
    assert command_line.main(["cache", "verify", "tok", "--share", "1", "--device", "cpu"]) == 1
    told = capsys.readouterr().out
    assert "24 of 24 images encoded again" in told
    assert "23 equal" in told
    assert str(victim) in told


def test_verify_finds_images_that_have_moved_and_refuses_others(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").rename("moved")
    words = ["cache", "verify", "tok", "--share", "1", "--device", "cpu"]
    assert command_line.main(words) == 2
    assert "does not exist" in (told := capsys.readouterr().err)
    assert "--data PATH" in told
    assert command_line.main([*words, "--data", "moved"]) == 0
    Path("moved/cat/00.jpg").rename("moved/cat/99.jpg")
    assert command_line.main([*words, "--data", "moved"]) == 2
    told = capsys.readouterr().err
    assert "images" in told
    assert "--data PATH" in told


def test_an_image_that_was_left_out_and_still_is_broken_counts_as_equal(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = Path("photos/cat/04.jpg")
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    assert command_line.main([*PREDICT, "--cache.folder", "tokens", "--cache.num_crops", "2"]) == 0
    words = ["cache", "verify", "tokens", "--share", "1", "--device", "cpu"]
    assert command_line.main(words) == 0
    assert "24 equal" in capsys.readouterr().out
    victim.write_bytes(whole)
    assert command_line.main(words) == 1
    assert str(victim) in capsys.readouterr().out


@pytest.mark.parametrize("array", ["tokens", "labels", "ids"])
def test_verify_finds_a_flipped_bit(
    work: Path, capsys: pytest.CaptureFixture[str], array: str
) -> None:
    path = Path(f"runs/tok/tokens/train-00002.{array}.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert command_line.main(["cache", "verify", "tok", "--share", "0", "--device", "cpu"]) == 2
    assert f"{path.name}' is corrupt" in capsys.readouterr().err


def test_a_tokenizer_swapped_within_the_cache_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(Path("runs/tok/tokens/tokenizer"), seed=1)
    assert command_line.main(["cache", "verify", "tok", "--device", "cpu"]) == 2
    assert "was made by tokenizer" in capsys.readouterr().err
    fit = ["var", "fit", "-c", "digits", "--name", "v", "--data.tokens", "tok", "--gpus", "0"]
    fit += ["--data.batch_size", "4", "--trainer.max_steps", "1"]
    assert command_line.main(fit) == 2
    assert "the token cache was made by tokenizer" in capsys.readouterr().err


def test_a_cache_names_no_code_of_others(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("runs/tok/tokens/manifest.json")
    path.write_text(path.read_text().replace("varlit.data.images.ImageDataModule", "os.system"))
    assert command_line.main(["cache", "verify", "tok", "--device", "cpu"]) == 2
    assert "was read by os.system: expected a data module of varlit" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["varlit.nosuch.Thing", "varlit.data.images.Path"])
def test_a_class_that_varlit_has_not_is_told(
    work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = Path("runs/tok/tokens/manifest.json")
    path.write_text(path.read_text().replace("varlit.data.images.ImageDataModule", name))
    assert command_line.main(["cache", "verify", "tok", "--device", "cpu"]) == 2
    assert f"names {name}, which reads no images" in capsys.readouterr().err


def test_settings_of_another_version_are_told(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/tok/tokens/manifest.json")
    path.write_text(
        path.read_text().replace('"resize_ratio": 1.125,\n   "hori', '"old": 1,\n   "hori')
    )
    assert command_line.main(["cache", "verify", "tok", "--device", "cpu"]) == 2
    assert "settings that this varlit does not know" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["llamagen", "safetensors"])
def test_what_is_exported_comes_back_to_the_bit(
    work: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    words = ["--format", kind]
    assert command_line.main(["cache", "export", "tok", "out", *words]) == 0
    if kind == "llamagen":
        assert command_line.main(["cache", "export", "tok", "val", *words, "--split", "val"]) == 0
        words += ["--val", "val"]
    assert command_line.main(["cache", "import", "out", "back", *words, "--tokenizer", "tok"]) == 0
    assert "next     varlit var fit" in capsys.readouterr().out
    ours, theirs = TokenDataModule("tok"), TokenDataModule("back")
    for split in ("train", "val"):
        a, b = ours._dataset(split), theirs._dataset(split)
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.rows(0, 99), b.rows(0, 99))
    assert theirs.tokenizer_hash == tokenizer_hash(load_tokenizer("back/tokenizer"))
    assert theirs.class_names == (("cat", "dog") if kind == "safetensors" else ("0", "1"))
    assert command_line.main(["cache", "verify", "back", "--device", "cpu"]) == 2
    assert "was imported" in capsys.readouterr().err


def test_the_words_that_are_missing_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["cache"]) == 0
    assert "varlit tokenizer predict --name tok --cache.num_crops" in capsys.readouterr().out
    assert command_line.main(["cache", "verfy"]) == 2
    assert "did you mean `varlit cache verify`?" in capsys.readouterr().err
    assert command_line.main(["cache", "verify", "x", "--share", "2"]) == 2


def start(words: list[str], folder: Path) -> "subprocess.Popen[str]":
    """As a user would; without OMP_NUM_THREADS, so that every start picks its own threads."""
    source = Path(__file__).resolve().parents[3] / "src"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(source)
    return subprocess.Popen(
        [sys.executable, "-m", "varlit", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(words: list[str], folder: Path) -> None:
    process = start(words, folder)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told


def shards(cache: Path) -> int:
    return sum(1 for _ in cache.glob("*-[0-9]*.json"))


@pytest.mark.slow
@pytest.mark.soak
def test_one_process_two_processes_and_three_kills_write_the_same_bytes(tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos", 160)
    make_tokenizer(tmp_path / "runs/tok")
    words = [*PREDICT, "--cache.num_crops", "3", "--cache.batch_size", "7"]
    one, two, cut = (tmp_path / name for name in ("one", "two", "cut"))
    finish([*words, "--cache.folder", "one"], tmp_path)
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    finish([*words, *ddp, "--cache.folder", "two", "--data.batch_size", "6"], tmp_path)

    chance = random.Random(0)
    for _ in range(3):
        before, moment = shards(cut), chance.randrange(1, 6)
        process = start([*words, "--cache.folder", "cut", "--data.num_workers", "1"], tmp_path)
        while process.poll() is None and shards(cut) < before + moment:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.1)
        assert process.poll() is None, "it was over before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert not (cut / "manifest.json").exists()
    (cut / "tokenizer").mkdir(exist_ok=True)
    (cut / "tokenizer" / "model.safetensors.tmp123").write_bytes(b"half a tokenizer")
    (cut / f".train-00029.tokens.npy.{'a' * 32}").write_bytes(b"half a shard")
    finish([*words, "--cache.folder", "cut"], tmp_path)

    assert len(contents(one)) == 40 * 4 + 4, "30 + 10 shards, spec, manifest and tokenizer"
    assert contents(one) == contents(two)
    assert contents(one) == contents(cut)
