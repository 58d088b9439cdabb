import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlit.data import inspection
from varlit.data.bad_files import BadFile
from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.folders import list_class_folders
from varlit.data.inspection import Inspection, count_duplicates, inspect_images
from varlit.errors import UserError


def encoded(image: Image.Image, kind: str, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 8
    return exif


RGB = Image.new("RGB", (40, 30), (200, 10, 90))
DEEP = Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16))
FILES = {
    "animated.gif": (encoded(RGB, "GIF", save_all=True, append_images=[DEEP]), ("animated",)),
    "animated.webp": (
        encoded(RGB, "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        ("animated",),
    ),
    "cmyk.jpg": (encoded(RGB.convert("CMYK"), "JPEG"), ("cmyk",)),
    "deep.png": (encoded(DEEP, "PNG"), ("deep", "gray")),
    "deep.tif": (encoded(DEEP, "TIFF"), ("deep", "gray")),
    "gray.jpg": (encoded(RGB.convert("L"), "JPEG"), ("gray",)),
    "glass.png": (encoded(RGB.convert("RGBA"), "PNG"), ("alpha",)),
    "key.png": (encoded(RGB.convert("P"), "PNG", transparency=0), ("alpha",)),
    "plain.bmp": (encoded(RGB, "BMP"), ()),
    "plain.gif": (encoded(RGB.convert("P"), "GIF"), ()),
    "plain.jpg": (encoded(RGB, "JPEG"), ()),
    "turned.jpg": (encoded(RGB.convert("L"), "JPEG", exif=turned()), ("gray", "turned")),
    "turned.png": (encoded(RGB, "PNG", exif=turned()), ("turned",)),
    "turned.tif": (encoded(RGB, "TIFF", exif=turned()), ("turned",)),
}


@pytest.fixture
def images(tmp_path: Path) -> EncodedImages:
    (tmp_path / "a").mkdir()
    for name, (content, _) in FILES.items():
        (tmp_path / "a" / name).write_bytes(content)
    return list_class_folders(tmp_path)


def inspected(images: EncodedImages, **kwargs: Any) -> Inspection:
    found = Inspection(images)
    for look in inspect_images(images, np.arange(len(images)), kwargs.pop("workers", 0), **kwargs):
        found.add(look)
    return found


def test_what_is_special_about_each_file_is_seen(images: EncodedImages) -> None:
    traits = {}
    for look in inspect_images(images, np.arange(len(images)), 0):
        assert not look.broken
        assert look.shorter_px == 30
        traits[Path(images.where(look.row)).name] = look.traits
    assert traits == {name: traits for name, (_, traits) in FILES.items()}


def test_broken_and_small_images_are_what_a_run_would_skip(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    RGB.save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").touch()
    Image.new("RGB", (300, 8)).save(tmp_path / "a" / "2.png")
    os.mkfifo(tmp_path / "a" / "3.png")
    found = inspected(list_class_folders(tmp_path))
    names = [str(tmp_path / "a" / f"{i}.png") for i in range(4)]
    broken = (
        BadFile(names[1], "an empty file"),
        BadFile(names[3], "a pipe or device and not a file"),
    )
    assert found.bad_files(0) == list(broken)
    small = BadFile(names[2], "shorter side 8 px, smaller than the crop of 20 px")
    assert found.bad_files(20) == [broken[0], small, broken[1]]
    assert found.small(20).tolist() == [2]


def test_processes_find_what_one_finds(
    images: EncodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "CHUNK_IMAGES", 3)
    alone = inspected(images, with_content=True)
    shared = inspected(images, workers=2, with_content=True)
    assert shared.num_seen == alone.num_seen == len(FILES)
    assert np.array_equal(shared.shorter_px, alone.shorter_px)
    assert np.array_equal(shared.contents, alone.contents)
    assert {trait: sorted(rows) for trait, rows in shared.trait_rows.items()} == alone.trait_rows


class Deadly:
    """A split whose first image kills the process that reads it."""

    place, class_names = "deadly", ("a",)
    labels, names = np.zeros(4, dtype=np.int64), np.array([b"a", b"b", b"c", b"d"])

    def __len__(self) -> int:
        return 4

    def read(self, row: int) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    def where(self, row: int) -> str:
        return str(row)

    def take(self, rows: np.ndarray) -> "Deadly":
        return self


def test_a_killed_process_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK_IMAGES", 1)
    # What pytest imports by path, a spawned process cannot: fork it.
    fork = inspection.multiprocessing.get_context("fork")
    monkeypatch.setattr(inspection.multiprocessing, "get_context", lambda _: fork)
    with pytest.raises(UserError, match="was killed, perhaps for want of memory"):
        list(inspect_images(Deadly(), np.arange(4), 2))


def test_equal_contents_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i, content in enumerate((FILES["gray.jpg"], FILES["cmyk.jpg"], FILES["gray.jpg"])):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(content[0])
    (tmp_path / "a" / "3.jpg").touch()
    (tmp_path / "a" / "4.jpg").touch()
    found = inspected(list_class_folders(tmp_path), with_content=True)
    assert count_duplicates(found.contents) == 1, "what cannot be read is no duplicate"
    assert count_duplicates(np.concatenate([found.contents] * 2)) == 4
    assert count_duplicates(inspected(list_class_folders(tmp_path)).contents) == 0
