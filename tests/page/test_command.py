"""The line to copy: the shell reads back exactly what the page was set to."""

import json
import shlex

import pytest

from varlit.page.command import Opened, command_line
from varlit.page.requests import Bounds, parse_request

BOUNDS = Bounds(num_classes=3, side_px=32)


def line(fields, opened):
    return shlex.split(command_line(parse_request(json.dumps(fields).encode(), BOUNDS), opened))


def test_every_setting_stands_in_the_line(plain):
    opened = Opened("runs/my run", 3, ("ant", "bee", "cow"), ("--root", "else where"))
    words = line(plain | {"more_smooth": True, "cfg_scale": 1.23456789}, opened)
    assert words == [
        *("varlit", "sample", "runs/my run", "--classes", "bee", "--per_class", "2"),
        *("--cfg_scale", "1.23456789", "--top_k", "0", "--top_p", "0.9", "--seed", "5"),
        *("--more_smooth", "--root", "else where"),
    ]


@pytest.mark.parametrize(
    ("names", "label", "word"),
    [
        (("ant", "cow's; rm -rf ~", "bee"), 1, "cow's; rm -rf ~"),
        (("ant", "bee, wild", "cow"), 1, "1"),
        (("ant", "bee", "bee"), 1, "1"),
        (("ant", "", "bee"), 1, "1"),
        ((), 2, "2"),
        (("ant", "bee", "cow"), None, "none"),
        (("ant", "-bee", "cow"), 1, "1"),
        (("ant", "none", "cow"), 1, "1"),
        (("ant", "None", "cow"), 1, "1"),
        (("1", "bee, wild", "cow"), 1, "#1"),
        (("1", "0", "2"), 1, "0"),
    ],
)
def test_classes_are_named_where_a_name_can_be_typed(plain, names, label, word):
    words = line(plain | {"label": label}, Opened("r", 3, names))
    assert words[words.index("--classes") + 1] == word


def test_an_edit_starts_from_the_files_that_the_page_saves(plain, edit):
    words = line(plain | {"edit": edit | {"hide_masked": True}}, Opened("r", 3))
    assert words[:6] == ["varlit", "edit", "r", "picture.png", "--mask", "mask.png"]
    assert words[6:12] == ["--class", "1", "--variants", "2", "--paste", "--hide_masked"]
    both = edit | {"free_first_scale": True, "refit_known": True}
    assert line(plain | {"edit": both}, Opened("r", 3))[11:13] == [
        *("--free_first_scale", "--refit_known")
    ]
    free = line(plain | {"label": None, "edit": edit | {"keep_rest": False}}, Opened("r", 3))
    flags = {"--class", "--paste", "--hide_masked", "--free_first_scale", "--refit_known"}
    assert not flags & set(free)


def test_a_kind_of_guidance_that_is_not_the_default_stands_in_the_line(plain):
    opened = Opened("r", 3)
    words = line(plain | {"guidance": "constant"}, opened)
    assert words[words.index("--guidance") + 1] == "constant"
    assert "--guidance" not in line(plain | {"guidance": "var"}, opened)
