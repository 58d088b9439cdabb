"""What `varlit edit` reads: photos upright, masks cut like them, boxes, and canvases that grow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varlit.cli.editing.inputs import (
    Extent,
    box_mask,
    check_mask,
    extent,
    read_mask,
    read_photo,
)
from varlit.errors import UserError

SIDE = 16


def test_a_turned_photo_is_seen_upright_and_its_mask_with_it(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), 90).save(tmp_path / "turned.jpg", exif=exif)
    photo = read_photo(tmp_path / "turned.jpg", SIDE)
    assert photo.file_size == (20, 40)
    mask = Image.new("L", (20, 40))
    mask.paste(255, (0, 10, 10, 30))  # of the centre square 10..30 the left half
    mask.save(tmp_path / "mask.png")
    seen = read_mask(tmp_path / "mask.png", photo)
    assert seen[:, : SIDE // 2].all()
    assert not seen[:, SIDE // 2 :].any()


def test_a_mask_is_cut_like_the_photo_and_never_blurred(tmp_path: Path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 2, (3 * SIDE, 9 * SIDE), dtype=np.uint8) * 255
    Image.fromarray(grey).convert("RGB").save(tmp_path / "photo.png")
    Image.fromarray(grey).save(tmp_path / "mask.png")
    photo = read_photo(tmp_path / "photo.png", SIDE)
    seen = read_mask(tmp_path / "mask.png", photo)
    centre = grey[:, 3 * SIDE : 6 * SIDE][1::3, 1::3]
    assert np.array_equal(seen.numpy(), centre > 127)


def test_canvases_grow_beyond_sides_and_to_ratios():
    assert extent("left,top", 0.5, (16, 24), 16).canvas == (24, 36)
    assert extent("left,top", 0.5, (16, 24), 16).corner == (8, 12)
    assert extent("all", 0.25, (16, 16), 16).canvas == (24, 24)
    assert extent("left", 0.5, (8, 20), 16) == Extent((16, 30), (4, 10))
    assert extent("top,left", 0.5, (4, 4), 16) == Extent((16, 16), (12, 12))
    assert extent("right,bottom", 0.5, (4, 4), 16) == Extent((16, 16), (0, 0))
    assert extent("all", 0.25, (5, 5), 16) == Extent((16, 16), (5, 5))
    assert extent("2:1", 0.5, (16, 16), 16).canvas == (16, 32)
    assert extent("2:1", 0.5, (16, 16), 16).corner == (0, 8)
    assert extent("1:2", 0.5, (16, 24), 16).canvas == (48, 24)
    assert extent("16:9", 0.5, (256, 256), 256).canvas == (256, 456)


def test_a_box_is_left_top_right_bottom():
    mask = box_mask("0.5, 0, 1, 0.25", 8)
    assert mask.nonzero().tolist() == [[y, x] for y in (0, 1) for x in (4, 5, 6, 7)]


@pytest.mark.parametrize(
    "box", ["0,0,1", "a,0,1,1", "-.1,0,1,1", "0,0,1.1,1", ".5,0,.5,1", "nan,0,1,1"]
)
def test_a_box_outside_the_picture_or_empty_is_refused(box: str):
    with pytest.raises(
        UserError, match=r"--box: got .*expected --box left,top,right,bottom in 0..1"
    ):
        box_mask(box, 8)


def test_a_mask_of_nothing_is_refused_and_one_of_everything_is_said():
    with pytest.raises(UserError, match="nothing is to be drawn"):
        check_mask(box_mask("0,0,0.01,0.01", 8))
    with pytest.warns(UserWarning, match="everything is to be drawn"):
        check_mask(box_mask("0,0,1,1", 8))
