from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlit.data.decoding import BrokenImageError, SquareCrop, read_rgb, read_size


def pixel(path: Path, x: int = 0, y: int = 0) -> Any:
    return read_rgb(path).getpixel((x, y))


def test_every_kind_of_file_becomes_8_bit_rgb(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (6, 4), (200, 100, 50))
    for mode, suffix in [
        *(("RGB", "png"), ("L", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("LA", "png")),
        *(("RGBA", "png"), ("CMYK", "jpg"), ("I;16", "png"), ("I", "tif"), ("RGB", "webp")),
        ("F", "tif"),
    ]:
        path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
        source = rgb.convert("L").convert("I") if mode in ("I;16", "I") else rgb
        source.convert(mode).save(path)
        image = read_rgb(path)
        assert (image.mode, image.size) == ("RGB", (6, 4)), mode
        assert read_size(path) == (6, 4)


def test_cmyk_keeps_its_colors(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = pixel(tmp_path / "red.jpg")
    assert red > 230
    assert max(green, blue) < 40


def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 256 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_32_bit_files_with_8_bit_values_are_left_alone(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert np.asarray(read_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 100, 255]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert pixel(tmp_path / "rgba.png") == (255, 255, 255)
    assert pixel(tmp_path / "palette.png") == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 16), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # stored turned left: to be shown turned right
    image.save(tmp_path / "a.png", exif=exif)
    assert read_rgb(tmp_path / "a.png").size == (16, 8)
    assert pixel(tmp_path / "a.png", 15, 4) == (255, 255, 255)
    assert pixel(tmp_path / "a.png", 0, 4) == (0, 0, 0)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "a.gif") == (255, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_damaged_files_are_reported_as_broken(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    broken = tmp_path / f"broken.{suffix}"
    for damaged in (b"", b"hello", content[:40], content[: len(content) // 2]):
        broken.write_bytes(damaged)
        with pytest.raises(BrokenImageError):
            read_rgb(broken)


def test_a_missing_file_is_reported_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="No such file"):
        read_rgb(tmp_path / "nowhere.png")


@pytest.mark.parametrize("size", [(100, 60), (61, 97), (40, 40), (333, 50)])
def test_the_plain_view_is_torchvisions_resize_and_center_crop(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = transforms.Compose(
        [
            transforms.Resize(36, transforms.InterpolationMode.LANCZOS),
            transforms.CenterCrop(32),
        ]
    )(image)
    got = SquareCrop(32, 1.125, True, 0)(image, 5, 0)
    assert np.array_equal(got, np.asarray(expected))


def test_random_views_depend_on_seed_id_and_view_alone() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
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
