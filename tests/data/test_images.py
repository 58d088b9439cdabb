import inspect
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from varlit.data.bad_files import FEWEST, LIST_FILE, MAX_SHARE
from varlit.data.imagenet import ImageNetDataModule
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


def row_of(data: ImageDataModule, name: str) -> int:
    names = [data.splits["train"].where(row) for row in range(len(data.splits["train"]))]
    [row] = [row for row, where in enumerate(names) if where.endswith(name)]
    return row


def test_a_broken_image_is_named_once_and_replaced_by_others(damaged: Path) -> None:
    data = module(damaged, val_fraction=0)
    broken, taken = row_of(data, "red/03.png"), []
    loader = data.train_dataloader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(6):
            loader.sampler.set_epoch(epoch)
            ids = [i for batch in loader for i in batch["id"].tolist()]
            assert len(ids) == 16
            assert set(range(16)) - set(ids) == {broken}
            taken += [i for i in set(ids) if ids.count(i) == 2]
    [message] = [str(w.message) for w in caught]
    assert "red/03.png" in message
    assert len(taken) == 6
    assert len(set(taken)) > 2, "not one image that the run sees twice as often"


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
    with pytest.raises(UserError, match=r"cannot use the image '.*red/03\.png' \(not an image"):
        list(data.train_dataloader())


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"100 images of .* in a row cannot be used"):
        next(iter(module(tmp_path, val_fraction=0).train_dataloader()))


def test_a_set_of_small_images_is_refused_before_the_run_starts(tmp_path: Path) -> None:
    make_tree(tmp_path)
    for i in range(FEWEST + 1):
        Image.new("RGB", (40, 20)).save(tmp_path / "red" / f"small{i}.png")
    with pytest.raises(UserError, match=r"small0\.png' is 40x20 px, smaller than") as caught:
        module(tmp_path, val_fraction=0)
    assert "set small_images to upscale" in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_few_small_images_are_skipped_and_counted(tmp_path: Path, num_workers: int) -> None:
    make_tree(tmp_path)
    Image.new("RGB", (40, 20)).save(tmp_path / "red" / "small.png")
    data = module(tmp_path, val_fraction=0, num_workers=num_workers, batch_size=17)
    loader = data.train_dataloader()
    with pytest.warns(UserWarning, match=r"small\.png' \(40x20 px, smaller than the crop of 32 px"):
        [batch] = list(loader)
    assert row_of(data, "small.png") not in batch["id"].tolist()
    assert loader.bad_files is not None
    assert len(loader.bad_files) == 1


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
    "kwargs",
    [
        *({"val_fraction": 1.0}, {"val_fraction": -0.1}, {"resize_ratio": 0.9}),
        *({"max_bad_share": -0.1}, {"max_bad_share": 1.5}),
    ],
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


def jpeg(image: Image.Image, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **kwargs)
    return file.getvalue()


def photo(size: tuple[int, int] = (48, 56)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def write_odd_images(folder: Path) -> set[str]:
    """Images that are unusual but fine."""
    before, rgb = set(os.listdir(folder)), photo()
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "gray.jpg")
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    deep = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    for suffix in ("gif", "webp"):
        rgb.save(folder / f"animated.{suffix}", save_all=True, append_images=[photo()] * 2)
    (folder / "folder.jpg").mkdir()
    rgb.save(folder / "folder.jpg" / "inside.jpg")
    rgb.save(folder / "a tab\tand  spaces.jpg")
    return set(os.listdir(folder)) - before


def write_bad_files(folder: Path) -> set[str]:
    """Files that no run can use."""
    before, content = set(os.listdir(folder)), jpeg(photo((256, 256)))
    (folder / "bad-cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "bad-header.jpg").write_bytes(content[:100])
    (folder / "bad-empty.jpg").touch()
    (folder / "bad-text.jpg").write_text("<html>404</html>")
    os.mkfifo(folder / "bad-pipe.jpg")
    (folder / "bad-device.jpg").symlink_to("/dev/zero")
    (folder / "bad-link.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "bad-circle.jpg").symlink_to(folder / "bad-circle.jpg")
    Image.new("RGB", (1, 1)).save(folder / "bad-dot.png")
    Image.new("RGB", (1, 5000)).save(folder / "bad-thread.png")
    bomb = io.BytesIO()
    Image.new("1", (1, 1)).save(bomb, "BMP")
    side = (50_000).to_bytes(4, "little")
    (folder / "bad-bomb\t.bmp").write_bytes(bomb.getvalue()[:18] + side * 2 + bomb.getvalue()[26:])
    photo().save(folder / "bad-vanished.png")
    photo().save(folder / "bad-locked.png")
    return set(os.listdir(folder)) - before


class Run:
    """As much of a trainer as a data module asks for."""

    world_size, global_rank, accumulate_grad_batches, overfit_batches = 1, 0, 1, 0

    def __init__(self, folder: Path) -> None:
        self.default_root_dir = str(folder)


@pytest.fixture
def odd_and_bad(tmp_path: Path) -> tuple[Path, set[str]]:
    make_tree(tmp_path / "images", num_images=4)
    write_odd_images(tmp_path / "images" / "blue")
    return tmp_path / "images", write_bad_files(tmp_path / "images" / "red")


def open_odd_and_bad(images: Path, **kwargs: Any) -> ImageDataModule:
    """Open the set and let two of its files go after it was listed."""
    data = module(images, val_fraction=0, max_bad_share=1.0, **kwargs)
    (images / "red" / "bad-vanished.png").unlink()
    (images / "red" / "bad-locked.png").unlink()
    (images / "red" / "bad-locked.png").symlink_to("/proc/self/mem")
    data.trainer = Run(images.parent / "run")  # type: ignore[assignment]
    return data


def listed(folder: Path) -> list[str]:
    lines = (folder / LIST_FILE).read_text(encoding="utf-8").splitlines()
    return sorted(Path(line.split("\t")[0]).name for line in lines)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_file_of_a_real_data_set_stops_an_epoch(
    odd_and_bad: tuple[Path, set[str]], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, bad = odd_and_bad
    data = open_odd_and_bad(images, num_workers=num_workers, batch_size=32)
    num_images = len(data.splits["train"])
    assert num_images == 8 + 10 + len(bad)
    assert num_images < 32 + 8
    data.batch_size = num_images
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        [batch] = list(data.train_dataloader())
    usable = {row for row in range(num_images) if "/bad-" not in data.splits["train"].where(row)}
    assert set(batch["id"].tolist()) == usable
    assert len(batch["id"]) == num_images
    expected = sorted(name.replace("\t", r"\t") for name in bad)
    assert listed(images.parent / "run") == expected
    skipped = [str(w.message) for w in caught if "skipped the bad image" in str(w.message)]
    assert len(skipped) == len(bad)
    assert len(caught) == len(bad), "Pillow's own warnings would drown them"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_encoding_marks_each_bad_file_and_no_other(
    odd_and_bad: tuple[Path, set[str]], num_workers: int
) -> None:
    images, bad = odd_and_bad
    data = open_odd_and_bad(images, num_workers=num_workers)
    [loader] = data.predict_dataloader()
    with pytest.warns(UserWarning, match="skipped the bad image"):
        ids = torch.cat([batch["id"] for batch in loader]).tolist()
    rows = [-1 - i if i < 0 else i for i in ids]
    assert rows == list(range(len(data.splits["train"])))
    marked = {data.splits["train"].where(-1 - i).rpartition("/")[2] for i in ids if i < 0}
    assert marked == bad
    assert len(listed(images.parent / "run")) == len(bad)
    assert loader.bad_files is not None
    assert len(loader.bad_files) == len(bad)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_above_the_share_the_main_process_stops_the_run(tmp_path: Path, num_workers: int) -> None:
    make_tree(tmp_path / "images", num_images=20)
    for i in range(FEWEST + 1):
        (tmp_path / "images" / "red" / f"{i:02d}.png").write_bytes(b"")
    data = module(tmp_path / "images", val_fraction=0, num_workers=num_workers)
    data.trainer = Run(tmp_path / "run")  # type: ignore[assignment]
    loader = data.train_dataloader()
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UserError, match=f"^{FEWEST + 1} of 40 images cannot be used") as caught,
    ):
        list(loader)
    assert str(tmp_path / "run" / LIST_FILE) in str(caught.value)
    assert len(listed(tmp_path / "run")) == FEWEST + 1
    assert loader._iterator is None, "no workers are left"


class Learner(LightningModule):
    """Learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_trainer_hands_the_refusal_on_and_keeps_the_list(
    tmp_path: Path, num_workers: int
) -> None:
    make_tree(tmp_path / "images", num_images=20)
    for i in range(FEWEST + 1):
        (tmp_path / "images" / "red" / f"{i:02d}.png").write_bytes(b"")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path / "run",
        use_distributed_sampler=False,
        enable_progress_bar=False,
        **quiet,
    )
    data = module(tmp_path / "images", val_fraction=0, num_workers=num_workers)
    with (
        pytest.warns(UserWarning, match="skipped the bad image"),
        pytest.raises(UserError, match=f"^{FEWEST + 1} of 40 images cannot be used"),
    ):
        trainer.fit(Learner(), datamodule=data)
    assert len(listed(tmp_path / "run")) == FEWEST + 1


def test_training_and_validation_count_together(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", num_images=20)
    make_tree(tmp_path / "val", num_images=4)
    for split, count in (("train", FEWEST), ("val", 1)):
        for i in range(count):
            (tmp_path / split / "red" / f"{i:02d}.png").write_bytes(b"")
    data = module(tmp_path)
    data.trainer = Run(tmp_path / "run")  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="skipped"):
        list(data.train_dataloader())
    val = data.val_dataloader()
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UserError, match=f"^{FEWEST + 1} of 48 images"),
    ):
        list(val)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [ImageDataModule, ImageNetDataModule])
def test_one_share_is_the_default_everywhere(kind: type[ImageDataModule]) -> None:
    assert inspect.signature(kind).parameters["max_bad_share"].default == MAX_SHARE
