"""The content of a reference is that of its images, and is read once."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varlit.data.formats.folders import list_class_folders
from varlit.data.images import ImageDataModule
from varlit.training import reference_content
from varlit.training.reference_content import source_content


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """6 images of 16 px in class folders below val/."""
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = tmp_path / "photos" / "val" / name
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_data_of_two_roots_with_the_same_names_are_told_apart(tmp_path):
    found = []
    for name, grey in (("one", 10), ("two", 200)):
        for split in ("train", "val"):
            folder = tmp_path / name / split / "cats"
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (grey, grey, grey)).save(folder / f"{i}.bmp")
        data = ImageDataModule(str(tmp_path / name), image_size=16)
        found.append(source_content(data.encoding_source("val"), name))
        assert source_content(data.encoding_source("train"), name) == found[-1]
    assert found[0] != found[1]


def test_images_that_are_unchanged_are_not_read_again(photos, monkeypatch):
    reads = []
    monkeypatch.setattr(reference_content, "RACY_NS", 0)
    hash_images = reference_content.hash_images
    monkeypatch.setattr(
        reference_content, "hash_images", lambda *a: (reads.append(1), hash_images(*a))[1]
    )
    images = list_class_folders(photos / "val")
    first = reference_content.images_content(images, "photos")
    assert reference_content.images_content(images, "photos") == first
    assert len(reads) == 1
    file = images.read(0)
    times = file.stat().st_mtime_ns
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(times, times))  # put in place with the old one's date
    assert reference_content.images_content(images, "photos") != first
    assert len(reads) == 2


def test_what_has_just_changed_is_not_remembered(photos, monkeypatch):
    monkeypatch.setattr(reference_content, "RACY_NS", 10**15)
    images = list_class_folders(photos / "val")
    reference_content.images_content(images, "photos")
    assert not list(Path(os.environ["VARLIT_CACHE"]).rglob("*.json"))
