import pytest

from varlit.data import progress as module
from varlit.data.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    return now_s


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("packing", 2)
    progress.add()
    progress.add()
    progress.end()
    assert capsys.readouterr().err == ""


def test_long_work_says_how_long(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("packing 'x'", 2000, done=1000)
    clock[0] = 10.0
    progress.add(200)
    assert capsys.readouterr().err == "packing 'x': 1,200 of 2,000 (60%), 40 s left\n"
    clock[0] = 11.0
    progress.add(1)
    assert capsys.readouterr().err == "", "a line every half minute where there is no terminal"
    clock[0] = 600.0
    progress.add(399)
    assert capsys.readouterr().err == "packing 'x': 1,600 of 2,000 (80%), 7 min left\n"


def test_the_first_of_several_processes_speaks(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    progress = Progress("packing", 2)
    clock[0] = 10.0
    progress.add()
    assert capsys.readouterr().err == ""
