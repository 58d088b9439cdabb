import numpy as np
import pytest

from varlit.errors import UserError
from varlit.viz import Section, poster
from varlit.viz.style import PAPER, text_width, with_heading, wrap


def picture(height, width, value=7):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_sections_are_stacked_unchanged_where_they_fit():
    sections = [Section("One", picture(50, 300, 7)), Section("Two", picture(60, 200, 9), "why")]
    sheet = poster(sections, headline="Run", footer="make demo")
    assert (sheet == 7).all(axis=-1).sum() == 50 * 300
    assert (sheet == 9).all(axis=-1).sum() == 60 * 200
    assert np.argmax((sheet == 7).any(axis=(1, 2))) < np.argmax((sheet == 9).any(axis=(1, 2)))
    assert (sheet[0] == PAPER).all()


def test_the_width_is_bounded():
    sheet = poster([Section("Wide", picture(100, 5000))], max_width_px=600)
    assert sheet.shape[1] == 600
    assert sheet.shape[0] < 300


def test_an_empty_poster_is_refused():
    with pytest.raises(UserError, match="at least one section"):
        poster([])


def test_captions_wrap_at_words():
    text = "several words that do not fit into one short line"
    rows = wrap(text, 14, 120)
    assert " ".join(rows) == text
    assert len(rows) > 1
    assert all(text_width(row, 14) <= 120 for row in rows)


def test_a_heading_only_adds_paper_and_ink_around_a_picture():
    sheet = with_heading(picture(40, 400), "Title", "Caption", margin_px=10)
    assert sheet.shape[1] == 420
    assert (sheet[-50:-10, 10:410] == 7).all()
