import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlit.data.crops import CentreCrop, SquareCrop
from varlit.data.draws import PLAIN_VIEW

SIZES = [
    *((100, 60), (61, 97), (40, 40), (333, 50), (36, 36), (36, 500), (37, 71), (35, 35), (32, 33)),
    *((64, 64), (63, 64), (65, 129), (128, 131), (257, 256), (500, 375), (375, 500), (20, 24)),
]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def noise(size: tuple[int, int], seed: int = 1) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def scene(size: tuple[int, int], seed: int) -> Image.Image:
    """Something like a photograph: a spectrum that falls with frequency, and an edge."""
    rng = np.random.default_rng(seed)
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / width
    phases = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    waves = np.fft.irfft2(phases / frequency**1.2, (height, width)).transpose(1, 2, 0)
    values = 120 + 15 * waves / waves.std() + 20 * (np.arange(width)[:, None] > width // 2)
    assert values.min() > 20, "no overshooting, see SquareCrop.cut_directly"
    assert values.max() < 235
    return Image.fromarray(values.astype(np.uint8))


def resized_by_torchvision(image: Image.Image, target: int) -> Image.Image:
    transforms: Any = pytest.importorskip("torchvision.transforms.v2")
    resize = transforms.Resize(target, transforms.InterpolationMode.LANCZOS)
    resized: Image.Image = resize(image)
    return resized


@each_size
@pytest.mark.parametrize(("side", "ratio"), [(32, 1.125), (16, 1.0), (32, 1.5)])
def test_the_plain_view_is_torchvisions_resize_and_center_crop(
    size: tuple[int, int], side: int, ratio: float
) -> None:
    transforms: Any = pytest.importorskip("torchvision.transforms.v2")
    image, crop = noise(size), SquareCrop(side, ratio, True, 0)
    expected = transforms.CenterCrop(side)(resized_by_torchvision(image, crop.resized_px))
    assert np.array_equal(crop(image, 5, PLAIN_VIEW), np.asarray(expected))


def test_sizes_are_rounded_as_torchvision_rounds_them() -> None:
    functional: Any = pytest.importorskip("torchvision.transforms.functional")
    crop = SquareCrop(256, 1.125, False, 0)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 5000, (2000, 2)).tolist():
        height_out, width_out = functional._compute_resized_output_size((height, width), [288])
        assert crop.resized(width, height) == (width_out, height_out)


@each_size
def test_a_random_view_is_a_part_of_torchvisions_resize(size: tuple[int, int]) -> None:
    functional: Any = pytest.importorskip("torchvision.transforms.v2.functional")
    image, crop = noise(size), SquareCrop(24, 1.25, True, 3)
    resized = resized_by_torchvision(image, 30)
    whole = crop.resize(image)
    for view in range(1, 9):
        left, top, mirrored = crop._place(resized.size, 7, view)
        expected = functional.crop(resized, top, left, 24, 24)
        expected = functional.horizontal_flip(expected) if mirrored else expected
        assert np.array_equal(crop.cut(image, whole, 7, view), np.asarray(expected))


def test_a_view_cut_directly_is_the_same_but_for_rounding() -> None:
    crop = SquareCrop(64, 1.125, True, 0)
    differences = []
    for seed, size in enumerate([(256, 341), (300, 256), (500, 375), (80, 73), (72, 72), (64, 90)]):
        image = scene(size, seed)
        whole = crop.resize(image)
        for view in range(1, 6):
            one = crop.cut(image, whole, seed, view).astype(int)
            differences.append(np.abs(one - crop.cut_directly(image, seed, view)))
    assert np.max(differences) <= 2
    assert np.mean(np.array(differences) > 0) < 0.1


def test_random_views_depend_on_seed_id_and_view_alone() -> None:
    image = noise((120, 80))
    crop = SquareCrop(32, 1.25, False, 0)
    one = crop(image, 5, 1)
    assert one.shape == (32, 32, 3)
    assert np.array_equal(one, crop(image, 5, 1))
    others = [crop(image, 6, 1), crop(image, 5, 2), SquareCrop(32, 1.25, False, 1)(image, 5, 1)]
    assert not any(np.array_equal(one, other) for other in others)


def test_random_crops_reach_every_place_and_half_are_mirrored() -> None:
    ramp = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (40, 1, 3))
    image = Image.fromarray(ramp)
    crop = SquareCrop(32, 1.25, True, 0)
    views = [crop(image, i, 1)[0, :, 0].astype(int) for i in range(400)]
    mirrored = sum(view[0] > view[-1] for view in views)
    assert 150 < mirrored < 250
    assert {min(view[0], view[-1]) for view in views} == set(range(9))


def centre_crop_of_adm(image: Image.Image, side: int) -> np.ndarray:
    """ADM's centre crop, written from its description.

    While the shorter side is at least twice the crop, both sides are halved (rounded down) by
    area averaging; then bicubic, so that the shorter side is the crop, the longer rounded to the
    nearest; then the middle, an odd remainder going to the right and to the bottom.
    """
    width, height = image.size
    for _ in range(int(math.log2(max(1, min(width, height) / side)))):
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    scale = side / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    values = np.asarray(image)
    top, left = (values.shape[0] - side) // 2, (values.shape[1] - side) // 2
    return values[top : top + side, left : left + side]


@each_size
@pytest.mark.parametrize("side", [16, 32, 31])
def test_adms_centre_crop_is_adms(size: tuple[int, int], side: int) -> None:
    image, crop = noise(size), SquareCrop(side, 1.125, True, 0, "adm")
    expected = centre_crop_of_adm(image, side)
    assert np.array_equal(crop(image, 5, PLAIN_VIEW), expected)
    assert np.array_equal(crop.cut_directly(image, 5, PLAIN_VIEW), expected)


def test_the_centre_crop_does_not_touch_random_views() -> None:
    image = noise((100, 60))
    var, adm = (SquareCrop(32, 1.125, True, 0, kind) for kind in ("var", "adm"))
    assert not np.array_equal(var(image, 5, PLAIN_VIEW), adm(image, 5, PLAIN_VIEW))
    assert np.array_equal(var(image, 5, 1), adm(image, 5, 1))


@pytest.mark.parametrize("centre_crop", ["var", "adm"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3, 2999), (17, 1), (40, 65000)])
def test_the_thinnest_images_give_crops(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], centre_crop: CentreCrop
) -> None:
    resize, areas = Image.Image.resize, []

    def watched(image: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
        areas.append(size[0] * size[1])
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    image, crop = Image.new("RGB", size, (10, 200, 30)), SquareCrop(64, 1.125, True, 0, centre_crop)
    for view in range(4):
        assert (crop(image, 0, view) == (10, 200, 30)).all()
        assert (crop.cut_directly(image, 0, view) == (10, 200, 30)).all()
    assert max(areas) < 20 * 80**2, "1 x 5000 px, resized as a whole, were 26 million"


def test_rounding_never_puts_a_corner_beyond_the_image() -> None:
    rng = np.random.default_rng(0)
    for sample_id, (width, height) in enumerate(rng.integers(1, 60, (3000, 2)).tolist()):
        crop = SquareCrop(int(rng.integers(1, 40)), 1.0 + float(rng.random()), False, 0)
        image = Image.new("RGB", (width, height))
        assert crop.cut_directly(image, sample_id, 1).shape == (*[crop.image_size] * 2, 3)
