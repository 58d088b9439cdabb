import pytest
import torch

import varlit
from varlit.checkpoints.store import find_model, load
from varlit.errors import UserError
from varlit.models.files import LoadedVAR
from varlit.models.vqvae import VQVAE


def test_a_model_is_loaded_by_the_name_of_its_run_or_by_path(runs):
    for tokenizer in (load("tok", runs), load(runs / "tok"), load(str(runs / "d1" / "tokenizer"))):
        assert isinstance(tokenizer, VQVAE)
    loaded = load("d1", root=str(runs))
    assert isinstance(loaded, LoadedVAR)
    assert loaded.class_names == ("cat", "dog")


def test_what_is_loaded_is_frozen_and_speaks_of_the_same_tokens(runs):
    loaded, tokenizer = load("d1", runs), load("tok", runs)
    assert not loaded.var.training
    assert not any(p.requires_grad for p in loaded.var.parameters())
    images = torch.rand(2, 3, 2, 2) * 2 - 1
    assert torch.equal(loaded.tokenizer.encode(images), tokenizer.encode(images))


def test_the_package_offers_it(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr("varlit.checkpoints.store.RUNS_FOLDER", runs)
    assert varlit.load is load
    assert isinstance(varlit.load(runs / "tok"), varlit.VQVAE)


def test_a_path_wins_over_a_run_of_the_same_name(runs, monkeypatch):
    monkeypatch.chdir(runs)
    assert find_model("tok", root=runs / "d1").resolve() == (runs / "tok").resolve()


def test_a_slip_of_the_finger_is_answered_with_the_nearest_run(runs):
    with pytest.raises(
        UserError, match=r"no model `tok1`: no such folder or run; did you .* `tok`"
    ):
        load("tok1", runs)


def test_the_known_runs_are_listed_when_none_is_near(runs, tmp_path):
    with pytest.raises(UserError, match=r"models in .*: d1, tok"):
        load("zzzzzz", runs)
    with pytest.raises(UserError, match="none yet"):
        load("zzzzzz", tmp_path / "empty")


def test_a_run_without_a_checkpoint_yet_is_told_from_a_missing_one(runs):
    with pytest.raises(UserError, match=r"new has no config\.json yet"):
        load("new", runs)
