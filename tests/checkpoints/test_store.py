import pytest

from varlit.checkpoints.store import find_model
from varlit.errors import UserError


def test_a_path_wins_over_a_run_of_the_same_name(runs, monkeypatch):
    monkeypatch.chdir(runs)
    assert find_model("tok", root=runs / "d1").resolve() == (runs / "tok").resolve()


def test_a_slip_of_the_finger_is_answered_with_the_nearest_run(runs):
    with pytest.raises(
        UserError, match=r"no model `tok1`: no such folder or run; did you .* `tok`"
    ):
        find_model("tok1", runs)


def test_the_known_runs_are_listed_when_none_is_near(runs, tmp_path):
    with pytest.raises(UserError, match=r"models in .*: d1, tok"):
        find_model("zzzzzz", runs)
    with pytest.raises(UserError, match="none yet"):
        find_model("zzzzzz", tmp_path / "empty")


def test_a_run_without_a_checkpoint_yet_is_told_from_a_missing_one(runs):
    with pytest.raises(UserError, match=r"new has no config\.json yet"):
        find_model("new", runs)


def test_a_mistyped_path_is_not_taken_for_a_name_on_the_hub(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    with pytest.raises(UserError, match="no such folder or run"):
        find_model(f"{runs.name}/tokk", runs)


def test_a_file_is_answered_with_the_way_to_convert_it(runs):
    file = runs / "var_d16.pth"
    file.touch()
    with pytest.raises(UserError, match=rf"is a file.*varlit convert {file}"):
        find_model(str(file), runs)
