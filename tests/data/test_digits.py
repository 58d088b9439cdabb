import pytest
import torch
from torch.nn import functional

from varlit.data.digits import DigitsDataModule, load_digits
from varlit.data.loader import ResumableLoader
from varlit.errors import UserError


def test_digits_are_scikit_learns_in_its_order() -> None:
    from sklearn import datasets

    bunch = datasets.load_digits()
    digits = load_digits(8)
    images = torch.cat([digits.train_images, digits.test_images])
    restored = ((images[:, 0] + 1) * 8).numpy()
    assert (restored == bunch.images).all()
    assert torch.cat([digits.train_labels, digits.test_labels]).tolist() == bunch.target.tolist()


def test_enlarged_digits_keep_range_shape_and_brightness() -> None:
    digits = load_digits(32)
    assert digits.train_images.shape == (1500, 3, 32, 32)
    assert digits.test_images.shape == (297, 3, 32, 32)
    assert digits.train_images.min() >= -1
    assert digits.train_images.max() <= 1
    small = load_digits(8).train_images
    pooled = functional.avg_pool2d(digits.train_images, 4)
    assert (pooled - small).abs().mean() < 0.15


def test_digits_below_their_own_size_are_refused() -> None:
    with pytest.raises(UserError, match="8x8"):
        load_digits(4)


def test_batches_have_the_shape_that_modules_expect() -> None:
    data = DigitsDataModule(batch_size=50)
    assert (data.num_classes, data.class_names[3], data.image_size) == (10, "3", 32)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (50, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert torch.equal(batch["label"], data.digits.train_labels[batch["id"]])
    assert torch.equal(batch["image"], data.digits.train_images[batch["id"]])


def test_validation_is_the_rest_in_order() -> None:
    data = DigitsDataModule(batch_size=50)
    loader = data.val_dataloader()
    assert isinstance(loader, ResumableLoader)
    labels = torch.cat([batch["label"] for batch in loader])
    assert torch.equal(labels, data.digits.test_labels)
    assert len(list(data.test_dataloader())) == len(data.val_dataloader())
