"""`varlit data`: pack, index and info by the command line."""

import io
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from varlit.cli import main as command_line
from varlit.data.formats.shards_file import SHARDS_FILE, read_shard_list

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `varlit data ...`; returns the exit code and what was printed."""

    def data(*words: object) -> tuple[int, str]:
        code = command_line.main(["data", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            image = Image.new("RGB", (40, 40), (i, i, i))
            image.save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_alone_it_prints_its_card(run: Run) -> None:
    code, text = run()
    assert code == 0
    for verb in ("pack", "index", "info"):
        assert f"varlit data {verb}" in text


def test_unknown_verbs_and_flags_get_the_nearest(run: Run, photos: Path) -> None:
    code, text = run("pakc")
    assert (code, "did you mean `varlit data pack`?" in text) == (2, True)
    code, text = run("pack", photos, photos.parent / "out", "--shard_sise", 3)
    assert (code, "did you mean `--shard_size`?" in text) == (2, True)


def test_pack_says_what_it_did_and_what_is_next(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "my shards"
    (photos / "dog" / "bad.png").write_bytes(b"words")
    code, text = run("pack", photos, out, "--shard_size", 4, "--workers", 1)
    assert code == 0
    assert "train: 6 images in 2 shards" in text
    assert "left out 1 file, listed in " in text
    assert "dog/bad.png (not an image that Pillow can read)" in text
    assert f"varlit tokenizer fit -c folder --data.root '{out}'" in text
    code, text = run("pack", photos, out, "--shard_size", 4, "--workers", 1)
    assert (code, "2 shards were there" in text) == (0, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("pack", "nowhere", "out"), "the image folder 'nowhere' does not exist"),
        (("pack", "photos", "photos/out"), "give another OUT"),
        (("pack", "photos", "out", "--workers", "0"), "--workers is 0"),
        (("pack", "photos"), "the following arguments are required: out"),
        (("index", "nowhere"), "'nowhere' does not exist"),
        (("index", "photos"), "no .tar file"),
        (("info", "nowhere"), "does not exist"),
        (("info", ""), "ROOT is empty"),
        (("info", "pipe:cat"), "names no shards"),
    ],
)
def test_bad_input_is_one_or_two_lines(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(photos.parent)
    code, text = run(*words)
    assert code == 2
    assert reason in text
    assert text.count("\n") <= 2


def write_shard(path: Path, labels: list[int]) -> None:
    with tarfile.open(path, "w") as tar:
        for place, label in enumerate(labels):
            stream = io.BytesIO()
            Image.new("RGB", (40, 40)).save(stream, "PNG")
            for suffix, body in ((".png", stream.getvalue()), (".cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{place:04d}{suffix}")
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))


def test_index_lists_shards_from_elsewhere(run: Run, tmp_path: Path) -> None:
    write_shard(tmp_path / "x-train-0.tar", [0, 2])
    write_shard(tmp_path / "x-validation-0.tar", [1])
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nfish\n")
    assert run("index", tmp_path)[0] == 0
    assert read_shard_list(tmp_path / SHARDS_FILE).class_names == ("0", "1", "2")
    code, text = run("index", tmp_path, "--class_names", names)
    assert code == 0
    assert "train: 2 images in 1 shard" in text
    assert "val: 1 image in 1 shard" in text
    write_shard(tmp_path / "x-train-1.tar", [1])
    assert run("index", tmp_path)[0] == 0
    listed = read_shard_list(tmp_path / SHARDS_FILE)
    assert listed.class_names == ("cat", "dog", "fish"), "the names that were there are kept"
    assert [shard.file for shard in listed.splits["train"]] == ["x-train-0.tar", "x-train-1.tar"]
    assert listed.count("train") == 3


def test_index_refuses_damage_and_too_few_names(run: Run, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [0, 2])
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    code, text = run("index", tmp_path, "--class_names", names)
    assert (code, "has label 2, but there are 2 class names" in text) == (2, True)
    names.write_text("cat\n\ndog\n")
    code, text = run("index", tmp_path, "--class_names", names)
    assert (code, "has an empty line" in text) == (2, True)
    (tmp_path / "1.tar").write_bytes(b"\xa5" * 2000)
    code, text = run("index", tmp_path)
    assert (code, "is damaged (not a tar file)" in text) == (2, True)
    assert not (tmp_path / SHARDS_FILE).exists()


def test_info_says_what_a_fit_would_find(run: Run, photos: Path, tmp_path: Path) -> None:
    code, text = run("info", photos)
    assert code == 0
    assert "class folders" in text
    assert "classes: 2 (cat, dog)" in text
    assert "train: 6 images, 3 to 3 of a class" in text
    assert "cat/0.png" in text
    assert "val: none" in text
    run("pack", photos, tmp_path / "out", "--workers", 1)
    code, text = run("info", tmp_path / "out")
    assert code == 0
    assert "tar shards" in text
    assert "train-000000.tar/0000000" in text


def test_info_counts_the_images_of_a_stream(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("pack", photos, "shards", "--shard_size", 4, "--workers", 1)
    root = f"pipe:cat {tmp_path}/shards/train-{{000000..000001}}.tar"
    code, text = run("info", root)
    assert code == 0
    assert "tar shards, streamed" in text
    assert "train: 6 images in 2 shards, 2" in text
    assert "val: none; set data.val_root, or data.val_fraction 0" in text


def test_info_shows_the_names_that_people_give_to_classes(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "dog").rename(photos / "n02099601")
    assert "classes: 2 (cat, golden retriever)" in run("info", photos)[1]


def test_warnings_are_one_line_without_a_place_in_the_code(run: Run, photos: Path) -> None:
    (photos / "old.tar").touch()
    with pytest.warns(UserWarning, match="tar files") as caught:
        code, text = run("info", photos)
    assert (code, "class folders\n" in text) == (0, True)
    [warning] = caught
    line = warnings.formatwarning(warning.message, UserWarning, "code.py", 1)
    assert line == f"varlit: warning: {warning.message}\n"
    assert str(warning.message).endswith("reading the class folders. Keep one kind in a folder.")
