"""`varlit doctor -c`: whether what the recipe reads is there."""

from pathlib import Path

import pytest
from PIL import Image

from varlit.cli import main as command_line
from varlit.cli.doctor import main as doctor
from varlit.cli.doctor.findings import Finding
from varlit.cli.doctor.recipe import check_data
from varlit.cli.doctor.settings import resolve


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    for name in ("check_versions", "check_pair", "check_gpus", "check_weights"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))


def told(given: str, *words: str) -> list[Finding]:
    found = resolve(given, list(words))
    return list(check_data(found.stage, found.settings))


def draw(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (300, 300), (i, 0, 0)).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tokenizer/digits", "ok data the digits come with scikit-learn"),
        ("tokenizer/folder", "fix data the recipe reads your images; give --data photos/"),
        ("tokenizer/folder --data.root /nope", "fix data the image folder '/nope' does not exist"),
        ("imagenet256 --data.root /nope", "fix data the image folder '/nope' does not exist"),
        ("tokenizer/folder --data.root https://x/{0..1}.tar", "warn data streamed sets are not"),
        ("imagenet256", "fix imagenet no folder data/imagenet"),
        ("d16 --data.tokens nowhere", "fix cache no token cache in 'nowhere'"),
    ],
)
def test_data_that_are_not_there_are_told(line: str, said: str) -> None:
    [finding] = told(*line.split())
    assert " ".join(finding).startswith(said)


def test_the_root_of_a_file_is_opened_and_not_decoded(tmp_path: Path) -> None:
    draw(tmp_path / "photos/cat")
    (tmp_path / "photos/cat/0.png").write_bytes(b"no image")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/mine.yaml").write_text(
        "data: {class_path: ImageDataModule, init_args: {root: photos}}\n"
    )
    verdict, subject, text = told("tokenizer/mine.yaml")[0]
    assert (verdict, subject, text) == ("ok", "data", "2 images in 1 classes in photos")
    found = told("tokenizer/mine.yaml", "--data.val_root", "/nope")
    assert [verdict for verdict, _, _ in found] == ["fix"]


def test_imagenet_is_found_within_the_archive_of_kaggle(tmp_path: Path) -> None:
    draw(tmp_path / "kaggle/ILSVRC/Data/CLS-LOC/train/cat")
    assert told("imagenet256", "--data.root", "kaggle")[0][0] == "ok"


def test_imagenet_that_is_there_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "imagenet/cat")
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path / "imagenet"))
    assert [verdict for verdict, _, _ in told("imagenet256")] == ["ok", "warn", "ok"]


@pytest.mark.parametrize("flag", ["--data", "--data.root"])
def test_both_flags_find_that_nothing_is_there(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["doctor", "-c", "tokenizer/folder", flag, "/nope", "--gpus=0"]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "data"]
    assert len(said) == 1
    assert said[0].startswith("fix   data         the image folder '/nope' does not exist")
