from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from varlit.data.imagenet import ImageNetDataModule
from varlit.errors import UserError

SYNSETS = ("n01440764", "n01443537")


def make_tree(root: Path) -> Path:
    for split in ("train", "val"):
        for name in reversed(SYNSETS):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 30)).save(root / split / name / "0.JPEG")
    return root


def flatten(val: Path) -> None:
    for path in list(val.glob("*/*.JPEG")):
        path.rename(val / f"{path.parent.name}.JPEG")
        path.parent.rmdir()


def open_imagenet(root: Path | str = "", **settings: str) -> ImageNetDataModule:
    return ImageNetDataModule(str(root), image_size=32, batch_size=2, num_workers=0, **settings)


def test_the_folder_is_found_by_the_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(make_tree(tmp_path)))
    data = open_imagenet()
    assert data.class_names == SYNSETS
    assert [len(images) for images in data.splits.values()] == [2, 2]


def test_the_classes_are_ordered_as_torchvision_orders_them(tmp_path: Path) -> None:
    make_tree(tmp_path)
    for name in ("n10", "n2", "n02", "N3", "n1"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir()
            for file in ("10.JPEG", "9.JPEG"):
                Image.new("RGB", (20, 30)).save(tmp_path / split / name / file)
    data, theirs = open_imagenet(tmp_path), ImageFolder(str(tmp_path / "train"))
    train = data.splits["train"]
    assert list(data.class_names) == theirs.classes
    ours = [(train.where(row), int(train.labels[row])) for row in range(len(train))]
    assert ours == theirs.samples


def test_a_given_folder_wins_and_small_images_are_upscaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGENET_DIR", "/nowhere")
    data = open_imagenet(make_tree(tmp_path))
    with pytest.warns(UserWarning, match="small_images is upscale"):
        assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 32, 32)


def test_the_archive_of_kaggle_is_found_within(tmp_path: Path) -> None:
    inside = make_tree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    assert open_imagenet(tmp_path).splits["train"].place == str(inside / "train")


def test_where_it_is_missing_the_error_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no folder 'data/imagenet'\. Set IMAGENET_DIR") as e:
        ImageNetDataModule()
    assert "CONF=digits" in str(e.value)


def test_a_given_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' does not exist"):
        open_imagenet(tmp_path / "nowhere")


def test_training_images_alone_are_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "imagenet")
    elsewhere = (tmp_path / "imagenet" / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no folder '.*val' beside train: add it, or set"):
        open_imagenet(tmp_path / "imagenet")
    data = open_imagenet(tmp_path / "imagenet", val_root=str(elsewhere))
    assert data.splits["val"].place == str(elsewhere)


@pytest.mark.parametrize("is_given", [False, True])
def test_the_flat_validation_folder_of_the_download_is_refused(
    tmp_path: Path, is_given: bool
) -> None:
    val = make_tree(tmp_path) / "val"
    flatten(val)
    with pytest.raises(UserError, match=r"2 images but no class sub-folders.*run valprep\.sh"):
        open_imagenet(tmp_path, val_root=str(val) if is_given else "")


def test_another_format_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(root: str, val_root: str, val_fraction: float) -> None:
        asked.append(root)
        raise UserError("asked")

    monkeypatch.setattr("varlit.data.images.open_splits", refuse)
    names = ["hf:ILSVRC/imagenet-1k", "/x/train-{000000..000099}.tar"]
    for name in names:
        with pytest.raises(UserError, match="asked"):
            open_imagenet(name)
    assert asked == names
