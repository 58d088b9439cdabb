import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.data.images import ImageDataModule
from varlit.data.module import SPLITS
from varlit.errors import UserError

COLORS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def make_tree(root: Path, num_images: int = 8, size: tuple[int, int] = (40, 48)) -> Path:
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for i in range(num_images):
            Image.new("RGB", size, color).save(root / name / f"{i:02d}.png")
    return root


def module(root: Path, **kwargs: Any) -> ImageDataModule:
    defaults = {"image_size": 32, "batch_size": 4, "num_workers": 0}
    return ImageDataModule(str(root), **(defaults | kwargs))


def sizes(data: ImageDataModule) -> tuple[int, ...]:
    return tuple(len(source) for s in SPLITS if (source := data.source(s)) is not None)


def test_batches_are_what_modules_expect(tmp_path: Path) -> None:
    data = module(make_tree(tmp_path), val_fraction=0.25)
    assert (data.class_names, data.num_classes, data.image_size) == (("blue", "red"), 2, 32)
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert sum(len(batch["id"]) for batch in batches) == 16
    for batch in batches:
        assert batch["image"].shape[1:] == (3, 32, 32)
        assert batch["image"].dtype == torch.float32
        assert batch["image"].is_contiguous()
        red = batch["image"][:, 0].amax((1, 2))
        assert torch.equal(red, batch["label"] * 2.0 - 1.0), "red is class 1"


def test_train_and_val_folders_are_used_as_they_are(tmp_path: Path) -> None:
    make_tree(tmp_path / "train")
    make_tree(tmp_path / "val", num_images=1)
    data = module(tmp_path)
    assert sizes(data) == (16, 2)


def test_a_train_folder_alone_is_held_out_from(tmp_path: Path) -> None:
    make_tree(tmp_path / "train")
    data = module(tmp_path, val_fraction=0.5)
    assert sizes(data) == (8, 8)


def test_a_val_folder_alone_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "val")
    with pytest.raises(UserError, match="no train folder beside it"):
        module(tmp_path)


def test_no_validation_on_request(tmp_path: Path) -> None:
    data = module(make_tree(tmp_path), val_fraction=0)
    assert data.val_dataloader() == []
    assert sizes(data) == (16,)
    assert len(data.predict_dataloader()) == 1


def test_workers_read_what_the_main_process_reads(tmp_path: Path) -> None:
    make_tree(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "red" / "noise.png")
    batches = [list(module(tmp_path, num_workers=n).train_dataloader()) for n in (0, 2)]
    for alone, shared in zip(*batches, strict=True):
        assert torch.equal(alone["image"], shared["image"])
        assert torch.equal(alone["id"], shared["id"])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    make_tree(tmp_path)
    (tmp_path / "red" / "03.png").write_bytes(b"not an image")
    return tmp_path


def test_a_broken_image_is_named_once_and_replaced_by_the_next_good_one(damaged: Path) -> None:
    data = module(damaged, val_fraction=0)
    broken = [data.trees["train"].path(row).name for row in range(16)].index("03.png", 8)
    loader = data.train_dataloader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            ids += [i for batch in loader for i in batch["id"].tolist()]
    [message] = [str(w.message) for w in caught]
    assert "red/03.png" in message
    assert broken not in ids
    assert ids.count(broken + 1) == 4, "twice an epoch: its own turn and the broken one's"


def test_a_broken_image_is_marked_when_encoding(damaged: Path) -> None:
    data = module(damaged, val_fraction=0)
    [loader] = data.predict_dataloader()
    with pytest.warns(UserWarning, match=r"red/03\.png"):
        batches = list(loader)
    ids = torch.cat([batch["id"] for batch in batches])
    assert ids.tolist() == [*range(11), -1 - 11, *range(12, 16)]
    labels = torch.cat([batch["label"] for batch in batches])
    assert labels.tolist() == [0] * 8 + [1] * 8
    assert {len(batch["image"]) for batch in batches} == {4}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_stops_on_request(damaged: Path, num_workers: int) -> None:
    data = module(damaged, val_fraction=0, on_bad_image="stop", num_workers=num_workers)
    with pytest.raises(UserError, match=r"cannot read the image '.*red/03\.png' \(not an image"):
        list(data.train_dataloader())


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="16 images in a row cannot be read"):
        next(iter(module(tmp_path, val_fraction=0).train_dataloader()))


def test_small_images_are_refused_before_the_run_starts(tmp_path: Path) -> None:
    make_tree(tmp_path)
    Image.new("RGB", (40, 20)).save(tmp_path / "red" / "small.png")
    with pytest.raises(UserError, match=r"small\.png' is 40x20 px, the crop 32 px") as caught:
        module(tmp_path)
    assert "set small_images to upscale" in str(caught.value)


def test_small_images_that_turn_up_later_are_refused_too(tmp_path: Path) -> None:
    data = module(make_tree(tmp_path), val_fraction=0)
    Image.new("RGB", (20, 40)).save(tmp_path / "red" / "00.png")
    with pytest.raises(UserError, match=r"00\.png' is 20x40 px"):
        list(data.train_dataloader())


def test_small_images_are_enlarged_on_request_with_one_warning(tmp_path: Path) -> None:
    make_tree(tmp_path, size=(20, 24))
    data = module(tmp_path, val_fraction=0, small_images="upscale")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(data.train_dataloader())
    assert len(caught) == 1
    assert "(20x24 px) to the crop of 32 px" in str(caught[0].message)
    assert all(batch["image"].shape == (4, 3, 32, 32) for batch in batches)


@pytest.mark.parametrize(
    "kwargs", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"resize_ratio": 0.9}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected"):
        module(make_tree(tmp_path), **kwargs)


def test_a_module_without_a_folder_says_what_to_set() -> None:
    with pytest.raises(UserError, match=r"set data\.root"):
        ImageDataModule()


def test_the_description_tells_one_data_set_from_another(tmp_path: Path) -> None:
    make_tree(tmp_path)
    before = module(tmp_path).describe()
    assert module(tmp_path).describe() == before
    assert module(tmp_path, resize_ratio=1.0).describe() != before
    (tmp_path / "red" / "00.png").unlink()
    assert module(tmp_path).describe() != before
