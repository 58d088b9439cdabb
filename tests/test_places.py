from pathlib import Path

import pytest

from varlit.places import cache_folder


def test_the_variable_wins_over_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VARLIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("tars") == Path("/x/varlit/tars")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache_folder("tars") == Path("/h/.cache/varlit/tars")
    monkeypatch.setenv("VARLIT_CACHE", "~/mine")
    assert cache_folder("tars") == Path("/h/mine/tars")


def test_an_empty_variable_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARLIT_CACHE", "")
    assert cache_folder("tars") is None
