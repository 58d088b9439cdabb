import json
import shutil

import pytest
import torch
from safetensors import SafetensorError

from varlit.errors import UserError
from varlit.models.files import (
    load_tokenizer,
    load_var,
    read_model_config,
    save_tokenizer,
    save_var,
    tokenizer_hash,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture
def folder(make_tokenizer, make_var, tmp_path):
    """tok/ and var/, the latter with its tokenizer inside."""
    save_tokenizer(make_tokenizer(), tmp_path / "tok")
    save_var(make_var(), tmp_path / "tok", tmp_path / "var", ["cat", "dog", "owl"])
    return tmp_path


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_tokenizer_comes_back_to_the_bit(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(scales=(1, 3, 4), num_phi=0)
    save_tokenizer(tokenizer, tmp_path / "deep" / "tok")
    loaded = load_tokenizer(tmp_path / "deep" / "tok")
    assert same_weights(loaded, tokenizer)
    assert loaded.config == tokenizer.config
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_var_comes_back_to_the_bit_with_its_tokenizer(make_tokenizer, make_var, tmp_path):
    tokenizer, var = make_tokenizer(), make_var(shared_adaln=True)
    save_tokenizer(tokenizer, tmp_path / "tok")
    save_var(var, tmp_path / "tok", tmp_path / "var", ["cat", "dog", "owl"])
    loaded = load_var(str(tmp_path / "var"))
    assert same_weights(loaded.var, var)
    assert same_weights(loaded.tokenizer, tokenizer)
    assert (loaded.var.config, loaded.var.num_classes) == (var.config, 3)
    assert loaded.class_names == ("cat", "dog", "owl")
    assert not loaded.var.training


def test_a_var_folder_stands_alone(folder, tmp_path):
    moved = shutil.move(folder / "var", folder / "elsewhere")
    shutil.rmtree(folder / "tok")
    assert load_var(moved).tokenizer.config.codebook_size == 24


def test_saving_again_replaces_and_leaves_nothing_behind(folder, make_tokenizer, make_var):
    torch.manual_seed(7)
    tokenizer, var = make_tokenizer(), make_var()
    before = tokenizer_hash(load_tokenizer(folder / "tok"))
    save_tokenizer(tokenizer, folder / "tok")
    assert tokenizer_hash(load_var(folder / "var").tokenizer) == before, "the copy is its own"
    for source in ("tok", "var/tokenizer"):
        save_var(var, folder / source, folder / "var")
        assert same_weights(load_var(folder / "var").var, var)
        assert same_weights(load_var(folder / "var").tokenizer, tokenizer)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    places = ("tok", "var", "var/tokenizer")
    assert names == sorted(f"{place}/{name}" for place in places for name in (CONFIG, WEIGHTS))


def test_the_hash_changes_with_any_weight_and_with_the_config(make_tokenizer):
    tokenizer = make_tokenizer()
    original = tokenizer_hash(tokenizer)
    assert len(original) == 64
    for _, parameter in tokenizer.named_parameters():
        entry = parameter.data.view(-1)[-1:]
        kept = entry.clone()
        entry.copy_(torch.nextafter(kept, torch.tensor(torch.inf)))
        assert tokenizer_hash(tokenizer) != original
        entry.copy_(kept)
    assert tokenizer_hash(tokenizer) == original
    other = make_tokenizer(search="cosine")
    other.load_state_dict(tokenizer.state_dict())
    assert tokenizer_hash(other) != original


def test_the_hash_ignores_mode_memory_layout_and_order(make_tokenizer):
    tokenizer = make_tokenizer()
    original = tokenizer_hash(tokenizer)
    tokenizer.train().requires_grad_(False).to(memory_format=torch.channels_last)
    assert tokenizer_hash(tokenizer) == original


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.json is missing.*runs/<name>"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no model in"):
        load_var(tmp_path / "nowhere")


def test_the_other_kind_of_model_is_named(folder):
    with pytest.raises(UserError, match="holds a var, not a tokenizer"):
        load_tokenizer(folder / "var")
    with pytest.raises(UserError, match="holds a tokenizer, not a VAR"):
        load_var(folder / "tok")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not valid JSON"),
        ("\x80", "not valid JSON"),
        ("[1]", "does not describe a varlit model"),
        ('{"model": "diffusion"}', "does not describe a varlit model"),
    ],
)
def test_a_damaged_config_is_refused(folder, content, message):
    (folder / "tok" / CONFIG).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_model_config(folder / "tok")


def test_a_config_without_its_parts_is_refused(folder):
    (folder / "tok" / CONFIG).write_text('{"model": "tokenizer"}')
    with pytest.raises(UserError, match="lacks `tokenizer`"):
        load_tokenizer(folder / "tok")
    (folder / "var" / CONFIG).write_text('{"model": "var", "var": {}}')
    with pytest.raises(UserError, match="lacks `num_classes`"):
        load_var(folder / "var")


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_truncated_weights_are_refused(folder, size):
    path = folder / "tok" / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model.safetensors is damaged .*copy it again"):
        load_tokenizer(folder / "tok")


def test_missing_weights_are_refused(folder):
    (folder / "tok" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"model.safetensors is missing; copy the whole folder"):
        load_tokenizer(folder / "tok")
    shutil.rmtree(folder / "var" / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer: config\.json is missing"):
        load_var(folder / "var")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_dim": 4}, r"has shape \[.*but config.json describes \[.*not of one model"),
        ({"num_res_blocks": 2}, "lacks `encoder.levels.*does not fit the config.json"),
        ({"num_phi": 1}, "has unknown weights, such as `quantizer.phis.1.bias`"),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(folder, change, message):
    path = folder / "tok" / CONFIG
    config = json.loads(path.read_text())
    config["tokenizer"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder / "tok")


def test_a_var_refuses_another_tokenizer_of_the_same_shape(folder, make_tokenizer):
    torch.manual_seed(1)
    save_tokenizer(make_tokenizer(), folder / "other")
    shutil.copy(folder / "other" / WEIGHTS, folder / "var" / "tokenizer" / WEIGHTS)
    with pytest.raises(UserError, match="is not the tokenizer that this VAR was trained with"):
        load_var(folder / "var")


def test_a_full_disk_is_told_and_leaves_the_old_weights(folder, make_tokenizer, monkeypatch):
    before = (folder / "tok" / WEIGHTS).read_bytes()

    def fail(weights, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("varlit.models.files.save_file", fail)
    with pytest.raises(UserError, match=r"cannot write .*No space left.*free some space"):
        save_tokenizer(make_tokenizer(), folder / "tok")
    assert (folder / "tok" / WEIGHTS).read_bytes() == before
    assert not list((folder / "tok").glob("*.tmp*"))
