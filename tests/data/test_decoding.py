import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from varlit.data.decoding import MAX_PIXELS, BrokenImageError, orientation, read_rgb, read_size

# The filter that the module sets is undone by pytest.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{start}") for start in ("Corrupt EXIF data", "Image size")
]


def pixel(path: Path, x: int = 0, y: int = 0) -> Any:
    return read_rgb(path).getpixel((x, y))


def png(width: int, height: int, pixels: bytes, depth: int = 8, extra: bytes = b"") -> bytes:
    """The bytes of an RGB PNG, from its compressed rows; `extra` goes before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def turned_jpeg(value: int, size: tuple[int, int] = (64, 96)) -> bytes:
    """A JPEG with a white quarter at the top left of what is stored, and an orientation."""
    image = Image.new("RGB", size, "black")
    image.paste("white", (0, 0, size[0] // 2, size[1] // 2))
    exif = image.getexif()
    exif[0x0112] = value
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


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


def test_cmyk_is_taken_for_adobes_inverted_kind_also_without_its_marker() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, "JPEG", quality=95)
    content = file.getvalue()
    start = content.index(b"\xff\xee\x00\x0eAdobe")
    unmarked = content[:start] + content[start + 16 :]
    assert b"Adobe" not in unmarked
    assert Image.open(io.BytesIO(unmarked)).mode == "CMYK"
    for each in (content, unmarked):
        red, green, blue = np.asarray(read_rgb(each))[0, 0].tolist()
        assert red > 230
        assert max(green, blue) < 40


def test_16_bit_colors_are_scaled() -> None:
    row = np.array([[0, 0, 0], [25600, 65535, 300]], dtype=">u2").tobytes()
    content = png(2, 1, zlib.compress(b"\0" + row), depth=16)
    assert np.asarray(read_rgb(content))[0].tolist() == [[0, 0, 0], [100, 255, 1]]


def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 256 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_32_bit_files_with_8_bit_values_are_left_alone(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert np.asarray(read_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 100, 255]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    key = png(2, 2, zlib.compress(b"\0\1\2\3\7\7\7" * 2), extra=png_chunk(b"tRNS", b"\0\1\0\2\0\3"))
    (tmp_path / "key.png").write_bytes(key)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert pixel(tmp_path / "rgba.png") == (255, 255, 255)
    assert pixel(tmp_path / "palette.png") == (255, 255, 255)
    assert pixel(tmp_path / "key.png") == (255, 255, 255)
    assert pixel(tmp_path / "key.png", 1) == (7, 7, 7)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 16), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # stored turned left: to be shown turned right
    image.save(tmp_path / "a.png", exif=exif)
    assert read_rgb(tmp_path / "a.png").size == (16, 8)
    assert pixel(tmp_path / "a.png", 15, 4) == (255, 255, 255)
    assert pixel(tmp_path / "a.png", 0, 4) == (0, 0, 0)


@pytest.mark.parametrize("draft_px", [0, 8, 16, 32, 33])
@pytest.mark.parametrize("value", range(1, 9))
def test_jpegs_are_turned_upright_however_small_they_are_decoded(value: int, draft_px: int) -> None:
    image = read_rgb(turned_jpeg(value), draft_px)
    stored = (64, 96) if value < 5 else (96, 64)
    shrunk = {0: 1, 8: 8, 16: 4, 32: 2, 33: 1}[draft_px]
    assert image.size == (stored[0] // shrunk, stored[1] // shrunk)
    white = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    quarters = np.asarray(image.convert("L").resize((2, 2), Image.Resampling.BOX))
    assert np.argwhere(quarters.T > 150).tolist() == [list(white[value])]


def directory(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of some (tag, type, count, four bytes of value)."""
    packed = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + packed + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        *(b"Exif\0\0", b"Exif\0\0II", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12"),
        directory((0x0112, 4, 1, b"abcd")),
    ],
)
def test_an_image_with_damaged_exif_is_no_bad_image(exif: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 16), "red").save(file, "JPEG", exif=exif)
    assert read_rgb(file.getvalue()).size == (8, 16)


def test_a_damaged_tag_does_not_keep_an_image_from_being_turned() -> None:
    text_for_a_number = (0x0123, 2, 4, b"abc\0")
    exif, file = directory((0x0112, 3, 1, b"\0\6\0\0"), text_for_a_number), io.BytesIO()
    Image.new("RGB", (8, 16), "red").save(file, "JPEG", exif=exif)
    assert read_rgb(file.getvalue()).size == (16, 8)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(file))


def test_a_png_with_a_damaged_profile_is_no_bad_image() -> None:
    profile = png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nno hex")
    content = png(1, 1, zlib.compress(b"\0\1\2\3"), extra=profile)
    with pytest.raises(ValueError, match="hex"):
        Image.open(io.BytesIO(content)).getexif()
    assert read_rgb(content).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    assert orientation(Image.open(io.BytesIO(turned_jpeg(value)))) == 1


@pytest.mark.parametrize("side", [36, 100, 257])
def test_draft_never_gives_a_side_below_what_is_asked_for(side: int) -> None:
    for width, height in [(side, 8 * side), (2 * side - 1, 3 * side), (8 * side + 3, 9 * side)]:
        file = io.BytesIO()
        Image.new("L", (width, height)).save(file, "JPEG")
        got = read_rgb(file.getvalue(), side)
        assert side <= min(got.size) <= 2 * side
        assert abs(got.width / got.height - width / height) < 2 / side
    assert read_rgb(turned_jpeg(1, (side - 1, 400)), side).size == (side - 1, 400)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    path = tmp_path / f"a.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert pixel(path) == (255, 0, 0)


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


def test_what_is_no_file_is_reported_and_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name, reason in [
        *(("folder.jpg", "a folder and not a file"), ("pipe.jpg", "a pipe or device")),
        *(("device.jpg", "a pipe or device"), ("circle.jpg", "symbolic links")),
        ("gone.jpg", "No such file"),
    ]:
        for read in (read_rgb, read_size):
            with pytest.raises(BrokenImageError, match=reason):
                read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_reported(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(BrokenImageError, match="Permission denied"):
        read_rgb(tmp_path / "a.png")


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    for empty in (tmp_path / "a.jpg", b""):
        with pytest.raises(BrokenImageError, match="an empty file"):
            read_rgb(empty)


@pytest.mark.parametrize("side", [12_000, 50_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    bomb = png(side, side, zlib.compress(bytes(10_000)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for read in (read_rgb, read_size):
        with pytest.raises(BrokenImageError, match=r"(px: expected 1 to|more than) 134,217,728"):
            read(bomb)


def test_a_large_image_is_read_without_a_word_of_pillow() -> None:
    """In a process of its own: pytest listens to all warnings."""
    code = (
        "from PIL import Image; from varlit.data.decoding import *; import io; file = io.BytesIO();"
        "Image.new('1', (10000, 10000)).save(file, 'PNG'); print(read_size(file.getvalue()))"
    )
    assert MAX_PIXELS > 10_000**2 > 90e6, "where Pillow begins to warn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(10000, 10000)\n", "")


def test_only_formats_of_images_are_tried() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS", "which Pillow runs"
    with pytest.raises(BrokenImageError, match="not an image"):
        read_rgb(postscript)
