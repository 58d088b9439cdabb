"""Images that are small as files and huge as pixels, and files that only look like images.

Each is refused by its header: `load`, which makes the pixels, must not be reached.
"""

import base64
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from varlit.cli.photos import read_square
from varlit.data.decoding import FORMATS, MAX_PIXELS, BrokenImageError, read_rgb, read_size
from varlit.data.decoding import read_with_traits as read_traits
from varlit.errors import UserError

SIDE = 50_000
pytestmark = pytest.mark.filterwarnings("ignore:Image size")


def chunk(kind: bytes, content: bytes) -> bytes:
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    """An RGB PNG with the rows of a much smaller one; `more` are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(bytes(10_000)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def apng() -> bytes:
    """An animation of a million frames."""
    return png(SIDE, SIDE, chunk(b"acTL", struct.pack(">II", 10**6, 0)))


def gif() -> bytes:
    """A screen of one pixel, whose first frame reaches far beyond it."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0)
    return screen + frame + b"\x02\x02\x4c\x01\x00;"


def tiff(width: int, height: int) -> bytes:
    """An uncompressed TIFF of one byte of pixels."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 1)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IIH", 12, 0, len(tags)) + entries + bytes(4)


def bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + header + bytes(10)


def webp() -> bytes:
    """A canvas of 16,383 pixels a side, the largest of the format, with a frame of one."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (1, 1), color) for color in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    content = bytearray(file.getvalue())
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (16_382).to_bytes(3, "little") * 2
    return bytes(content)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(SIDE, SIDE),
    "a png between Pillow's two limits": lambda: png(12_500, 12_500),
    "a long png": lambda: png(2**31 - 1, 1),
    "animated png": apng,
    "gif": gif,
    "tiff": lambda: tiff(SIDE, SIDE),
    "bmp": bmp,
    "ppm": lambda: b"P6 50000 50000 255\n" + bytes(10),
    "webp": webp,
    "jpeg": lambda: jpeg(65_500, 65_500),
}


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header was given another size."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    content = bytearray(file.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = BOMBS[kind]()
    assert len(content) < 20_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for read in (read_rgb, read_size, read_traits):
        with pytest.raises(BrokenImageError, match=r"(px: expected 1 to|more than) 134,217,728"):
            read(content)


def test_the_limit_holds_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (10_000, SIDE):  # where Pillow warns, and where it raises
            with pytest.raises(BrokenImageError, match=r"more than|exceeds limit"):
                read_rgb(png(side, side))


def test_a_photo_on_the_command_line_is_held_to_it(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(SIDE, SIDE))
    with pytest.raises(UserError, match=r"photo\.png does not open as an image \(more than"):
        read_square(tmp_path / "photo.png", 64)


@pytest.mark.parametrize("kind", BOMBS)
def test_what_the_page_is_sent_is_held_to_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from varlit.page.pictures import read_image, read_mask

    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    text = base64.b64encode(BOMBS[kind]()).decode()
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=r"not a PNG|does not open|px, expected 64x64"):
            read(text, 64)


def test_the_page_takes_no_other_format() -> None:
    from varlit.page.pictures import read_image

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "TIFF")
    with pytest.raises(UserError, match="is not a PNG"):
        read_image(base64.b64encode(file.getvalue()).decode(), 64)


def test_the_limit_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    small = io.BytesIO()
    Image.new("RGB", (20, 20)).save(small, "PNG")
    monkeypatch.setenv("VARLIT_MAX_PIXELS", "399")
    with pytest.raises(BrokenImageError, match="20x20 px: expected 1 to 399"):
        read_rgb(small.getvalue())
    monkeypatch.setenv("VARLIT_MAX_PIXELS", "400")
    assert read_rgb(small.getvalue()).size == (20, 20)
    for wrong in ("0", "-1", "many", "1e9"):
        monkeypatch.setenv("VARLIT_MAX_PIXELS", wrong)
        with pytest.raises(UserError, match="expected pixels, as in"):
            read_rgb(small.getvalue())


def test_a_limit_beyond_pillows_is_kept_by_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("VARLIT_MAX_PIXELS", str(20_000**2))
    assert read_size(png(20_000, 20_000)) == (20_000, 20_000)
    with pytest.raises(BrokenImageError, match="more than 400,000,000 pixels"):
        read_size(png(20_001, 20_000))


def test_text_and_profiles_that_inflate_to_gigabytes_take_little_memory(tmp_path: Path) -> None:
    """In a process that may have 1 GiB more than it has; each chunk would fill two."""
    content = zlib.compressobj(9)
    packed = b"".join(content.compress(bytes(2**20)) for _ in range(64)) + content.flush()
    texts = [chunk(b"zTXt", b"k\0\0" + packed), chunk(b"iTXt", b"k\0\1\0\0\0" + packed)]
    (tmp_path / "x.png").write_bytes(png(8, 8, *texts * 20, chunk(b"iCCP", b"k\0\0" + packed)))
    code = (
        "import resource, sys; from pathlib import Path; from varlit.data.decoding import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: read_rgb(Path(sys.argv[1]))\n"
        "except BrokenImageError as error: print(error)\n"
        "print('MiB', (peak() - before) // 1024)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 128, done.stdout


@pytest.mark.parametrize("name", ["ICO", "EPS", "PSD", "ICNS", "WMF", "PCX", "FLI", "MPO"])
def test_formats_that_are_no_photographs_are_not_tried(name: str) -> None:
    """ICO and ICNS hold images that are larger than their header says; EPS is a program."""
    assert name not in FORMATS


def test_an_icon_with_a_bomb_in_it_is_no_image() -> None:
    inner = png(SIDE, SIDE)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inner
    with pytest.raises(BrokenImageError, match="not an image"):
        read_rgb(icon)


def test_a_tile_larger_than_its_image_does_not_fill_the_memory(tmp_path: Path) -> None:
    """libtiff would make room for a tile of 60,000 pixels a side."""
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tags += [(277, 3, 1, 1), (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 134)]
    tags += [(325, 4, 1, 20)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    packed = zlib.compress(bytes(100))
    with pytest.raises(BrokenImageError):
        read_rgb(content.ljust(134, b"\0") + packed)


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(BrokenImageError, match="not a file"):
            read_rgb(place)


def test_pixels_of_chunks_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """litdata's own headers can claim a size as well; the bytes must be there."""
    from varlit.data.formats.chunks import _pixels

    claims = np.array([SIDE, SIDE, 3], dtype="<u4").tobytes() + b"RGB" + bytes(100)
    monkeypatch.setattr(Image, "frombytes", None)  # which makes room first
    with pytest.raises(OSError, match=r"50000x50000 px in 115 bytes"):
        _pixels(claims, "pil")
    assert MAX_PIXELS == 2**27
