import warnings
from pathlib import Path

import pytest
from PIL import Image

from varlit.data.formats.folders import ClassFolders, has_class_folders
from varlit.data.formats.splits import open_splits
from varlit.data.formats.tars import TarImages
from varlit.data.packing import PackSettings, pack
from varlit.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A tree of class folders; their shards lie in `shards` beside it."""
    for name in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "photos" / name / "0.png")
    pack(tmp_path / "photos", tmp_path / "shards", PackSettings(), 1)
    return tmp_path / "photos"


def test_archives_beside_the_folders_they_were_unpacked_from_are_told_and_left(
    photos: Path,
) -> None:
    shards = photos.parent / "shards"
    (shards / "train-000000.tar").rename(photos / "ILSVRC2012_img_train.tar")
    with pytest.warns(UserWarning, match="class folders and tar files: reading the class folders"):
        found = open_splits(str(photos))
    assert isinstance(found["train"], ClassFolders)
    assert isinstance(found["val"], ClassFolders)


def test_shards_that_a_list_names_come_before_folders(photos: Path) -> None:
    for path in (photos.parent / "shards").iterdir():
        path.rename(photos / path.name)
    with pytest.warns(UserWarning, match="tar shards and class folders: reading the tar shards"):
        assert isinstance(open_splits(str(photos))["train"], TarImages)


def test_one_kind_of_images_is_opened_without_a_word(photos: Path) -> None:
    (photos.parent / "shards" / "notes").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(open_splits(str(photos))["train"], ClassFolders)
        assert isinstance(open_splits(str(photos.parent / "shards"))["train"], TarImages)


def test_class_folders_are_known_by_an_image_in_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "a" / "notes.txt").touch()
    (tmp_path / "hidden" / ".a").mkdir(parents=True)
    (tmp_path / "hidden" / ".a" / "0.png").touch()
    for name in ("empty", "hidden", "nowhere"):
        assert not has_class_folders(str(tmp_path / name))
    (tmp_path / "empty" / "b").mkdir()
    (tmp_path / "empty" / "b" / "0.JPG").touch()
    assert has_class_folders(str(tmp_path / "empty"))


@pytest.mark.parametrize("root", ["nowhere", "litdata:nowhere"])
def test_what_is_not_there_is_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected"):
        open_splits(root.replace("nowhere", str(tmp_path / "nowhere")))
