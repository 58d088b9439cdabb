"""The page in a real browser: what a person does with it, by mouse and by keyboard."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]
SETTINGS = "guidance=2&top-k=0&top-p=0.9&seed=5"
expect = sync_api.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    args = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=args)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, serve, studio) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens the page; afterwards nothing may have been said on its console."""
    pages, complaints = [], []

    def note(message) -> None:
        # A request that the server refuses is noted by the browser itself.
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            complaints.append(message.text)

    def open_one(hash: str = "", of=studio, **context) -> sync_api.Page:
        page = browser.new_page(**({"viewport": {"width": 1200, "height": 800}} | context))
        page.set_default_timeout(15_000)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        pages.append(page)
        page.goto(f"{serve(of).url}{hash}")
        expect(page.locator("#facts")).to_contain_text("classes")
        return page

    yield open_one
    for page in pages:
        page.close()
    assert complaints == []


@contextmanager
def drawing(page: sync_api.Page) -> Iterator[None]:
    """Wait for what the block starts to be drawn to the end."""
    page.locator("#status").evaluate("element => { element.textContent = '' }")
    yield
    expect(page.locator("#status")).to_have_text(re.compile(r"pictures? in [\d.]+ s"))
    expect(page.locator("#draw:not(.quiet)")).to_be_visible()


def shown(page: sync_api.Page, tile: int = 0) -> str:
    """The base64 text of the picture that a tile shows."""
    source = page.locator(".tile").nth(tile).locator("img").last.get_attribute("src")
    return source.removeprefix("data:image/png;base64,")


def paint_stroke(page: sync_api.Page) -> None:
    """Mark the upper left quarter or so with the mouse."""
    box = page.locator("#mask").bounding_box()
    at = [
        (box["x"] + x * box["width"], box["y"] + y * box["height"])
        for x, y in ((0.1, 0.1), (0.3, 0.3))
    ]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()


def test_a_picture_grows_scale_by_scale_and_stays(open_page, client, pixels):
    page = open_page()
    page.get_by_text("bee", exact=True).click()
    page.locator("#seed").fill("5")
    page.locator("#num_variants").fill("2")
    # Who watches the tiles sees every scale in turn.
    page.locator("#tiles").evaluate(
        "tiles => { window.seen = []; new MutationObserver(() => seen.push(tiles.dataset.frame))"
        ".observe(tiles, { attributeFilter: ['data-frame'] }) }"
    )
    with drawing(page):
        page.get_by_role("button", name="Draw", exact=True).click()
    assert page.evaluate("() => window.seen") == ["0", "1", "2", "3"]
    assert page.locator(".tile img").last.evaluate("image => image.naturalWidth") == 32
    last = client.draw(top_k=24, top_p=0.96, cfg_scale=1.5)[-2]
    assert [shown(page, i) for i in (0, 1)] == last["images"]
    # A scale can be looked at again.
    page.get_by_role("button", name="scale 2\u00d72").click()
    assert (pixels(shown(page)) != pixels(last["images"][0])).any()
    # A link repeats the picture.
    assert "class=1" in page.url
    again = open_page(page.url.partition("/#")[2].join(("#", "")))
    expect(again.locator("#status")).to_have_text(re.compile("2 pictures in"))
    assert shown(again) == last["images"][0]


def test_what_is_painted_is_drawn_anew_and_the_rest_stays(open_page, pixels):
    page = open_page(f"#class=1&{SETTINGS}&variants=1")
    expect(page.locator("#status")).to_have_text(re.compile("One picture in"))
    before = pixels(shown(page))
    page.locator("#paint").click()
    paint_stroke(page)
    page.locator("#seed").fill("9")
    page.get_by_text("cow's").click()
    with drawing(page):
        page.get_by_role("button", name="Draw the marked part").click()
    after = pixels(shown(page))
    assert (after[20:, :] == before[20:, :]).all()
    assert (after[:, 20:] == before[:, 20:]).all()
    assert (after[3:9, 3:9] != before[3:9, 3:9]).any()
    command = page.locator("#command code").inner_text()
    assert command.startswith("varlit edit tiny picture.png --mask mask.png --class 'cow'")
    # Rubbed out, nothing is left to draw.
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Draw the marked part").click()
    expect(page.get_by_role("alert")).to_have_text(re.compile("the mask is empty"))


def test_a_picture_of_ones_own_is_cut_to_the_side_of_the_model(open_page, tmp_path: Path, pixels):
    photo = np.zeros((90, 200, 3), dtype=np.uint8)
    photo[:, 55:145] = (200, 60, 20)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = open_page()
    page.get_by_text("Paint over", exact=True).first.click()
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_have_text(re.compile("does not open"))
    page.locator("#file").set_input_files(tmp_path / "photo.png")
    expect(page.locator("#source-picture")).to_be_visible()
    source = pixels(page.locator("#source-picture").get_attribute("src").partition(",")[2])
    assert (source == (200, 60, 20)).all()
    assert source.shape == (32, 32, 3)
    # The brush also goes by keyboard.
    page.locator("#mask").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    with drawing(page):
        page.get_by_role("button", name="Draw the marked part").click()
    for name in ("picture.png", "mask.png"):
        assert name in page.locator("#command code").inner_text()
    assert (pixels(shown(page))[0] == (200, 60, 20)).all()


def test_a_mistake_is_a_sentence_and_no_traceback(open_page):
    page = open_page()
    page.locator("#seed").fill("99999999999")
    page.locator("#seed").press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("seed must be a whole number in 0..4294967295; got 99999999999")
    page.locator("#seed").fill("")
    page.locator("#seed").press("Enter")
    expect(alert).to_have_text(re.compile("seed must be a whole number.*got nothing"))
    assert "Traceback" not in page.content()
    page.locator("#seed").fill("1")
    with drawing(page):
        page.locator("#seed").press("Enter")
    expect(alert).to_be_hidden()


def test_stop_and_escape_end_a_drawing(open_page, gate, studio, wait_until):
    page = open_page()
    for leave in (lambda: page.locator("#draw").click(), lambda: page.keyboard.press("Escape")):
        page.locator("#draw").click()
        expect(page.locator("#draw")).to_have_text("Stop")
        gate.open(1)
        expect(page.locator("#status")).to_have_text(re.compile("1 of 4"))
        page.wait_for_timeout(450)  # a double click would be no wish to stop
        leave()
        expect(page.locator("#status")).to_have_text("Stopped")
        gate.open()
        wait_until(lambda: studio.queue.is_free)
        gate.close()
        expect(page.locator("#draw")).to_have_text("Draw")


def test_many_classes_are_searched_by_name_or_number(open_page, make_studio):
    names = (*(f"bird {i}" for i in range(19)), "<b>owl</b>")
    page = open_page(of=make_studio(20, names))
    field = page.get_by_label("Class")
    for typed, meant in (("OWL", "19 <b>owl</b>"), ("7", "7 bird 7"), ("bird 12", "12 bird 12")):
        field.fill(typed)
        expect(page.locator("#class-hint")).to_have_text(meant)
    field.fill("20")
    page.locator("#draw").click()
    expect(page.get_by_role("alert")).to_have_text("no such class; a name, or a number in 0..19")
    field.fill("owl")
    with drawing(page):
        page.locator("#draw").click()
    assert "'<b>owl</b>'" in page.locator("#command code").inner_text()


@pytest.mark.parametrize("mode", ["draw", "edit"])
def test_a_phone_shows_all_of_it_without_sideways_scrolling(open_page, mode):
    page = open_page(f"#class=1&{SETTINGS}&variants=4", viewport={"width": 360, "height": 740})
    expect(page.locator("#status")).to_have_text(re.compile("4 pictures in"))
    if mode == "edit":
        page.locator("#paint").click()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    expect(page.locator("#draw")).to_be_in_viewport()


def test_the_traps_of_editing_have_their_boxes(open_page, studio):
    page = open_page(f"#class=1&{SETTINGS}&variants=1")
    expect(page.locator("#status")).to_have_text(re.compile("One picture in"))
    page.locator("summary").click()
    expect(page.locator("#refit_known")).to_be_hidden()
    page.locator("#paint").click()
    paint_stroke(page)
    with drawing(page):
        page.locator("#draw").click()
    without = shown(page)
    page.get_by_label("Let the overall colour change").check()
    page.get_by_label("Fit the rest to what is new").check()
    with drawing(page):
        page.locator("#draw").click()
    assert "--free_first_scale --refit_known" in page.locator("#command code").inner_text()
    assert shown(page) != without


def test_the_kind_of_guidance_is_chosen_and_stands_in_line_and_address(open_page):
    page = open_page(f"#class=1&{SETTINGS}&variants=1")
    expect(page.locator("#status")).to_have_text(re.compile("One picture in"))
    rising, output = shown(page), page.locator("output[for=cfg_scale]")
    assert "--guidance" not in page.locator("#command code").inner_text()
    page.locator("summary").click()
    page.get_by_label("Kind of guidance").select_option("constant")
    with drawing(page):
        page.locator("#draw").click()
    assert "--guidance constant" in page.locator("#command code").inner_text()
    constant = shown(page)
    assert constant != rising
    again = open_page(page.url.partition("/#")[2].join(("#", "")))
    expect(again.locator("#status")).to_have_text(re.compile("One picture in"))
    assert shown(again) == constant
    page.locator("#cfg_scale").fill("1")
    expect(output).to_have_text("none")
    page.get_by_label("Kind of guidance").select_option("var")
    expect(output).to_have_text("1")


def test_a_raster_scan_begins_with_constant_guidance(open_page, make_studio):
    studio = make_studio()
    assert open_page(of=studio).locator("#guidance").input_value() == "var"
    studio.card["frames"] = [f"row {i}" for i in range(1, 9)]
    assert open_page(of=studio).locator("#guidance").input_value() == "constant"


def test_every_control_has_a_name_and_the_keyboard_reaches_it(open_page):
    page = open_page(f"#class=1&{SETTINGS}&variants=1")
    expect(page.locator("#status")).to_have_text(re.compile("One picture in"))
    page.locator("#paint").click()
    unnamed = page.locator("button, input:not([hidden]), select, summary, canvas").evaluate_all(
        "all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == []
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.name"))
    wanted = {"mode", "class", "cfg_scale", "num_variants", "seed", "dice", "draw", "mask", "tool"}
    assert wanted | {"brush-size", "clear", "open", "paint", "save", "copy"} <= reached
