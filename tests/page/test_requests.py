"""What the page asks for is read whole or refused in one plain sentence."""

import base64
import json
import struct
import zlib

import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.page.requests import Bounds, parse_request

BOUNDS = Bounds(num_classes=3, side_px=32)


def parse(fields):
    return parse_request(json.dumps(fields).encode(), BOUNDS)


def huge_png() -> str:
    """A hundred bytes that claim to be 100,000 x 100,000 px."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return base64.b64encode(data + struct.pack(">I", zlib.crc32(chunk)) + bytes(60)).decode()


def test_a_request_becomes_what_the_sampler_takes(plain):
    request = parse(plain | {"more_smooth": True})
    assert (request.label, request.seed, request.num_variants) == (1, 5, 2)
    assert (request.settings.cfg_scale, request.settings.top_k) == (2.0, 0)
    assert request.settings.top_p == 0.9
    assert request.settings.more_smooth
    assert request.settings.guidance == "var"
    assert parse(plain | {"guidance": "constant"}).settings.guidance == "constant"
    assert request.edit is None


@pytest.mark.parametrize("absent", [True, False])
def test_no_class_is_the_unconditional_one(plain, absent):
    fields = {k: v for k, v in plain.items() if k != "label"} if absent else plain | {"label": None}
    assert parse(fields).label == BOUNDS.num_classes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": 3}, "class must be a whole number in 0..2; got 3"),
        ({"label": -1}, "got -1"),
        ({"label": True}, "got true"),
        ({"label": "ant"}, 'got "ant"'),
        ({"cfg_scale": 21}, "guidance must be a number in 0..20"),
        ({"cfg_scale": 10**400}, "guidance must be a number"),
        ({"cfg_scale": None}, "got nothing"),
        ({"top_k": 0.5}, "top-k must be a whole number"),
        ({"top_k": 10**9}, "top-k must be a whole number in 0..65536"),
        ({"top_p": 1.1}, "top-p must be a number in 0..1"),
        ({"seed": 2**32}, "seed must be a whole number in 0..4294967295"),
        ({"seed": -1}, "got -1"),
        ({"seed": {"a": 1}}, "got an object"),
        ({"num_variants": 17}, "variants must be a whole number in 1..16"),
        ({"num_variants": 0}, "got 0"),
        ({"guidance": "strong"}, "guidance must be one of var, constant"),
        ({"guidance": None}, "got nothing"),
        ({"more_smooth": 1}, "more-smooth must be true or false"),
        ({"sead": 1}, "no field 'sead'"),
        ({"edit": []}, "an edit must be a JSON object; got a list"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_the_bounds(plain, changes, said):
    with pytest.raises(UserError) as refused:
        parse(plain | changes)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 50_000, b"9" * 9000])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(UserError):
        parse_request(body, BOUNDS)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_finite_number_is_refused(plain, number):
    body = json.dumps(plain).replace("2.0", number).encode()
    with pytest.raises(UserError):
        parse_request(body, BOUNDS)


def test_an_edit_brings_picture_and_mask(plain, edit):
    request = parse(plain | {"edit": edit})
    assert request.edit.image.shape == (3, 32, 32)
    assert -1 <= request.edit.image.min() < -0.9 < 0.9 < request.edit.image.max() <= 1
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[:, :16] = True
    assert torch.equal(request.edit.mask, expected)
    assert request.edit.settings.keep_known_pixels
    off = ("hide_masked", "free_first_scale", "refit_known")
    assert not any(getattr(request.edit.settings, flag) for flag in off)
    for flag in off:
        settings = parse(plain | {"edit": edit | {flag: True}}).edit.settings
        assert [getattr(settings, name) for name in off] == [name == flag for name in off]


def test_pictures_that_do_not_fit_are_refused(plain, edit, png):
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    cut = base64.b64encode(base64.b64decode(edit["image"])[:400]).decode()
    cases = {
        "the picture is 16x16 px, expected 32x32": {"image": png(white[:16, :16])},
        "the mask is 32x16 px": {"mask": png(white[:16])},
        "the mask is empty": {"mask": png(white * 0)},
        "the picture must be the base64 text": {"image": 3},
        "the picture is not a PNG": {"image": base64.b64encode(b"GIF89a" + bytes(99)).decode()},
        "does not open as a PNG": {"image": cut},
        "the mask does not open as a PNG": {"mask": "####"},
        "the picture": {"image": huge_png()},
    }
    for said, changes in cases.items():
        with pytest.raises(UserError) as refused:
            parse(plain | {"edit": edit | changes})
        assert said in str(refused.value)
