"""From an encoded image to upright 8-bit RGB, whatever the file is."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from varlit.data.formats.encoded import Encoded
from varlit.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is tried, by content: Pillow's other readers are for other things, and one of them starts
Ghostscript."""
MAX_PIXELS = 2**27
"""Larger images are refused by their header: decoded they fill half a gigabyte in each worker.
$VARLIT_MAX_PIXELS sets another limit, for worker processes too."""
MAX_PIXELS_VARIABLE = "VARLIT_MAX_PIXELS"

# What Pillow's readers are known to raise on damaged files.
_DAMAGE = (
    *(OSError, EOFError, MemoryError, SyntaxError, ValueError, TypeError, LookupError),
    *(ArithmeticError, AssertionError, AttributeError, RuntimeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_DEEP = re.compile(r"\b(I|L|LA|RGB|RGBA|RGBX|CMYK);16")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of odd metadata and of large images, in each worker anew. Such images are either
# fine or listed as bad files: its second limit, twice the one it warns at, is an error like ours.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenImageError(Exception):
    """A file that cannot be read as an image; the text is the reason."""


@dataclass(frozen=True)
class Decoded:
    """An image and what was special about its file.

    Attributes:
        image: Upright 8-bit RGB.
        traits: Of "cmyk", "deep", "gray", "alpha", "turned" and "animated" those that hold.
    """

    image: Image.Image
    traits: tuple[str, ...]


def read_rgb(encoded: Encoded, draft_px: int = 0) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF rotation is applied, of an animation the first frame is taken, transparency is laid on
    white, 16-bit gray is scaled (Pillow's own conversion would clip it to white).

    Args:
        encoded: The image.
        draft_px: Where above 0, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as
            its shorter side stays at or above this.

    Raises:
        BrokenImageError: If it cannot be read.
    """
    with _damage_reported(), open_image(encoded) as image:
        if draft_px:
            _draft(image, draft_px)
        return _upright_rgb(image)


def read_with_traits(encoded: Encoded) -> Decoded:
    """Read an image as `read_rgb` does, and say what was special about it.

    Raises:
        BrokenImageError: If it cannot be read.
    """
    with _damage_reported(), open_image(encoded) as image:
        # Loading takes both away from some formats, and brings the second to others.
        is_deep, before = _is_deep(image), orientation(image)
        rgb = _upright_rgb(image)
        holds = {
            "cmyk": image.mode == "CMYK",
            "deep": is_deep,
            "gray": image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"),
            "alpha": image.has_transparency_data,
            "turned": before != 1 or orientation(image) != 1,
            "animated": _is_animated(image),
        }
        return Decoded(rgb, tuple(trait for trait, is_so in holds.items() if is_so))


def read_size(encoded: Encoded) -> tuple[int, int]:
    """Read (width, height) from the header alone, as stored: EXIF may yet swap them.

    Raises:
        BrokenImageError: If the file cannot be read.
    """
    with _damage_reported(), open_image(encoded) as image:
        return image.size


def open_image(encoded: Encoded) -> Image.Image:
    """Read an image's header.

    Raises:
        BrokenImageError: If it is no image file, or unreasonably large.
        Exception: Whatever Pillow raises on damage.
    """
    if isinstance(encoded, Image.Image):
        return encoded.copy()
    if isinstance(encoded, bytes):
        num_bytes = len(encoded)
        file: io.BytesIO | Path = io.BytesIO(encoded)
    else:
        num_bytes, file = _file_size(encoded), encoded
    if num_bytes == 0:
        raise BrokenImageError("an empty file")
    limit = max_pixels()
    image = Image.open(file, formats=FORMATS)
    if not 0 < image.width * image.height <= limit:
        image.close()
        raise BrokenImageError(f"{image.width}x{image.height} px: expected 1 to {limit:,}")
    return image


def max_pixels() -> int:
    """Return the number of pixels above which images are refused: `MAX_PIXELS`, or the user's.

    A limit beyond Pillow's own second one raises that for the whole process.

    Raises:
        UserError: If $VARLIT_MAX_PIXELS is no number of pixels.
    """
    given = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not given:
        return MAX_PIXELS
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"${MAX_PIXELS_VARIABLE} is '{given}': expected pixels, as in 200000000.")
    limit = int(given)
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    return limit


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 being upright; that of a PNG is known after `load`.

    It is read by hand because Pillow's `exif_transpose` also writes the other tags anew, and
    fails where one of them is damaged.
    """
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return int(value) if isinstance(value, int | float) and value in _TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.asarray(image)
        # Pillow reads some 16-bit files as 32-bit "I"; nothing else in it exceeds 255.
        if image.mode != "I" or gray.max(initial=0) > 255:
            gray = gray >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _damage_reported() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise  # of the limit, and not of the file
    except _DAMAGE as error:
        raise BrokenImageError(_reason(error)) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    turn = _TURNS.get(orientation(image))
    return to_rgb(image if turn is None else image.transpose(turn))


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel or more; Pillow reads most of them as 8."""
    read_as = [str(tile[3:]) for tile in getattr(image, "tile", ())]
    return image.mode in ("I", "F") or any(_DEEP.search(text) for text in (image.mode, *read_as))


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _DAMAGE:
        return True  # by a second frame that nobody will look at


def _file_size(path: Path) -> int:
    """Return the bytes of a file; opening a named pipe would wait for a writer, for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
        raise BrokenImageError(f"a {kind} and not a file")
    return status.st_size


def _draft(image: Image.Image, shorter_px: int) -> None:
    """Let the JPEG decoder skip what the resize would throw away; other formats ignore it."""
    ratio = shorter_px / min(image.size)
    if ratio < 1:
        # Pillow rounds the scale down to a power of two that leaves both sides at least so long.
        image.draft("RGB", (round(image.width * ratio), round(image.height * ratio)))


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {max_pixels():,} pixels"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
