"""A conversion overwrites nothing but the same model."""

import pytest
import torch

from varlit.checkpoints.official_out import check_out
from varlit.errors import UserError
from varlit.models.files import (
    load_tokenizer,
    load_var,
    save_tokenizer,
    save_var,
)


@pytest.fixture
def tokenizer(runs):
    return load_tokenizer(runs / "tok")


@pytest.fixture
def var(runs):
    return load_var(runs / "d1").var


def test_a_new_or_empty_folder_is_free(tmp_path, tokenizer, var):
    (tmp_path / "empty").mkdir()
    assert check_out(tmp_path / "empty", tokenizer) is None
    assert check_out(tmp_path / "none", var) is None


def test_the_same_model_is_free(runs, tokenizer, var):
    assert check_out(runs / "tok", tokenizer) is None
    assert check_out(runs / "d1", var, tokenizer).class_names == ("cat", "dog")
    save_var(var, None, runs / "bare")
    assert check_out(runs / "bare", var, tokenizer).bundled is None


def changed(network):
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    return network


def test_other_weights_are_kept(runs, tokenizer, var):
    with pytest.raises(UserError, match=r"this VAR with another tokenizer.*nothing was written"):
        check_out(runs / "d1", var, changed(tokenizer))
    with pytest.raises(UserError, match="another VAR"):
        check_out(runs / "d1", changed(var))
    with pytest.raises(UserError, match="another tokenizer"):
        check_out(runs / "tok", tokenizer)


def test_another_description_is_kept(runs, tokenizer):
    save_tokenizer(tokenizer.with_scales((1, 3)), runs / "other")
    with pytest.raises(UserError, match="another tokenizer"):
        check_out(runs / "other", tokenizer)


def test_another_kind_is_kept(runs, tokenizer, var):
    with pytest.raises(UserError, match="holds a VAR, and this is a tokenizer"):
        check_out(runs / "d1", tokenizer)
    with pytest.raises(UserError, match="holds a tokenizer, and this is a VAR"):
        check_out(runs / "tok", var)


def test_other_files_and_a_run_that_has_saved_nothing_yet_are_kept(runs, var, tmp_path):
    with pytest.raises(UserError, match="other files and no model"):
        check_out(runs / "new", var)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_out(tmp_path / "file", var)
    with pytest.raises(UserError, match="lies in the file"):
        check_out(tmp_path / "file" / "deeper" / "still", var)


def kill(folder, tokenizer, var):
    """What a conversion to `folder` leaves behind that is killed while it writes the VAR."""
    save_var(var, tokenizer, folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model.safetensors.tmp123")
    (folder / "tokenizer" / "config.json.tmp123").touch()


def test_what_a_killed_conversion_left_is_cleared_away_and_no_obstacle(tmp_path, tokenizer, var):
    kill(tmp_path / "killed", tokenizer, var)
    assert check_out(tmp_path / "killed", var, tokenizer) is None
    assert not list(tmp_path.rglob("*.tmp123"))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "model.safetensors.tmp7").touch()
    assert check_out(tmp_path / "first", tokenizer) is None


def test_a_start_of_another_conversion_is_kept(tmp_path, tokenizer, var):
    kill(tmp_path / "killed", tokenizer, var)
    before = list(tmp_path.rglob("*"))
    for network, other in ((var, changed(tokenizer)), (var, None)):
        with pytest.raises(UserError, match="other files and no model"):
            check_out(tmp_path / "killed", network, other)
    (tmp_path / "killed" / "notes.txt").touch()
    with pytest.raises(UserError, match="other files and no model"):
        check_out(tmp_path / "killed", var, load_tokenizer(tmp_path / "killed" / "tokenizer"))
    assert set(before) <= set(tmp_path.rglob("*")), "nothing was cleared away"
