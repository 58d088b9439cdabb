from pathlib import Path

import pytest
from PIL import Image

from varlit.data.imagenet import ImageNetDataModule
from varlit.errors import UserError


def make_tree(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 30)).save(root / split / name / "0.JPEG")
    return root


def test_the_folder_is_found_by_the_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(make_tree(tmp_path)))
    data = ImageNetDataModule(image_size=32, num_workers=0)
    assert data.class_names == ("n01440764", "n01443537")
    assert [len(tree) for tree in data.trees.values()] == [2, 2]


def test_a_given_folder_wins_and_small_images_are_upscaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGENET_DIR", "/nowhere")
    data = ImageNetDataModule(str(make_tree(tmp_path)), image_size=32, batch_size=2, num_workers=0)
    with pytest.warns(UserWarning, match="small_images is upscale"):
        assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 32, 32)


def test_where_it_is_missing_the_error_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no folder 'data/imagenet/train'\. Set IMAGENET_DIR") as e:
        ImageNetDataModule()
    assert "CONF=digits" in str(e.value)


def test_the_flat_validation_folder_of_the_download_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "imagenet")
    flat = tmp_path / "imagenet" / "val"
    for path in list(flat.glob("*/*.JPEG")):
        path.rename(flat / f"{path.parent.name}.JPEG")
        path.parent.rmdir()
    with pytest.raises(UserError, match="2 images but no class sub-folders"):
        ImageNetDataModule(str(tmp_path / "imagenet"))
