import multiprocessing
import warnings
from pathlib import Path

import pytest

from varlit.data.bad_files import FEWEST, LIST_FILE, MAX_SHARE, BadFile, BadFiles, bearable
from varlit.errors import UserError

ODD_NAMES = [
    *("a  b.jpg", "a b.jpg", "a\tb.jpg", "a\\tb.jpg", " a.jpg ", "line\nend.jpg", "line\rend.jpg"),
    *("\u2028.jpg", "\x0b.jpg", "caf\u00e9.jpg", "\udcff.jpg"),
]


def add_all(bad_files: BadFiles, names: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in names:
            bad_files.add(BadFile(name, "not an\nimage"))
    return [str(warning.message) for warning in caught]


def test_each_file_is_warned_of_counted_and_listed_once(tmp_path: Path) -> None:
    bad_files = BadFiles(tmp_path / "run", 1000, 0.001)
    messages = add_all(bad_files, ["x/a.jpg", "x/b.jpg", "x/a.jpg"])
    assert messages[0] == "skipped the bad image 'x/a.jpg' (not an\nimage)."
    assert (len(messages), len(bad_files)) == (2, 2)
    listed = (tmp_path / "run" / LIST_FILE).read_text(encoding="utf-8")
    assert listed == "x/a.jpg\tnot an image\nx/b.jpg\tnot an image\n"


def test_a_resumed_run_knows_every_name_whatever_is_in_it(tmp_path: Path) -> None:
    assert len(add_all(BadFiles(tmp_path, 10**6, 1.0), ODD_NAMES)) == len(ODD_NAMES)
    again = BadFiles(tmp_path, 10**6, 1.0)
    assert len(again) == len(ODD_NAMES)
    assert add_all(again, ODD_NAMES) == []
    lines = (tmp_path / LIST_FILE).read_bytes().split(b"\n")
    assert len(lines) == len(ODD_NAMES) + 1


def test_processes_share_one_list_and_one_count(tmp_path: Path) -> None:
    one, other = (BadFiles(tmp_path, 20_000, 0.001) for _ in range(2))
    add_all(one, [f"{i}.jpg" for i in range(15)])
    assert add_all(other, ["3.jpg"]) == [], "another process has said so"
    assert len(other) == 15
    with pytest.raises(UserError, match="21 of 20,000"):
        add_all(other, [f"{i}.jpg" for i in range(15, 30)])


def _write_many(folder: Path, process: int) -> None:
    add_all(BadFiles(folder, 10**6, 1.0), [f"{process}/{i}.jpg" for i in range(50)])


def test_lines_of_processes_do_not_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(tmp_path, k)) for k in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (tmp_path / LIST_FILE).read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == sorted(
        f"{k}/{i}.jpg\tnot an image" for k in range(3) for i in range(50)
    )


def test_a_run_bears_a_share_and_a_few_in_any_case() -> None:
    assert bearable(1_281_167, MAX_SHARE) == 1281
    assert bearable(200, MAX_SHARE) == FEWEST
    assert bearable(200, 0.5) == 100
    assert bearable(1_281_167, 0) == 0


def test_above_the_share_the_run_stops_with_what_to_do(tmp_path: Path) -> None:
    bad_files = BadFiles(tmp_path, 12_000, 0.001)
    add_all(bad_files, [f"{i}.jpg" for i in range(12)])
    with pytest.raises(UserError, match="13 of 12,000 images cannot be used") as caught:
        add_all(bad_files, ["last.jpg"])
    for words in ("'last.jpg' (not an", "0.001 bears 12", LIST_FILE, "varlit doctor --data"):
        assert words in str(caught.value)


def test_starting_again_does_not_get_past_the_stop(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(FEWEST + 1)]
    with pytest.raises(UserError):
        add_all(BadFiles(tmp_path, 100, 0.001), names)
    with pytest.raises(UserError, match="then delete that list"):
        add_all(BadFiles(tmp_path, 100, 0.001), names[:1])
    (tmp_path / LIST_FILE).unlink()
    assert len(add_all(BadFiles(tmp_path, 100, 0.001), names[:1])) == 1


def test_a_share_of_none_bears_none() -> None:
    with pytest.raises(UserError, match="1 of 10 images cannot be used"):
        add_all(BadFiles(None, 10, 0.0), ["a.jpg"])


def test_without_a_run_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(add_all(BadFiles(None, 10, 0.001), ["a.jpg"])) == 1
    assert list(tmp_path.iterdir()) == []
