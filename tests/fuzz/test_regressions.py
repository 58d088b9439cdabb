"""What the fuzzer found in models and checkpoints, each with a small input of its own."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fuzz import model_files, training_files
from varlit.callbacks.bad_steps import read_bad_step
from varlit.checkpoints.official_pickles import read_pickle
from varlit.errors import UserError
from varlit.generation.rejection.rule import RejectionCost
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_tokenizer, load_var
from varlit.ops.scales import Scales
from varlit.training.checkpoint_files import damage, read_checkpoint
from varlit.training.sealing import MARK, write_sealed
from varlit.training.shard_files import SHARDS, SUMS, open_parts

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update({SHARDS: 5}),
        lambda c: c.update({SHARDS: []}),
        lambda c: c.update({SHARDS: [5]}),
        lambda c: c.update({SHARDS: ["/etc/passwd"]}),
        lambda c: c.update({SHARDS: ["last.parts/../../x.pt"]}),
        lambda c: c.update({SUMS: 5}),
        lambda c: c[SUMS].append("x"),
    ],
)
def test_an_index_of_parts_that_names_no_parts_is_damaged(change: Change, tmp_path: Path) -> None:
    training_files.make_parts(tmp_path)
    path = tmp_path / "last.ckpt"
    assert damage(path) == ""
    content = torch.load(path, weights_only=True)
    change(content)
    write_sealed(content, path)
    assert damage(path)


@pytest.mark.parametrize("state", [None, 5, "text", [1], {"w": 1}])
def test_parts_that_do_not_fit_their_index_are_refused(state: Any, tmp_path: Path) -> None:
    training_files.make_parts(tmp_path)
    content = read_checkpoint(tmp_path / "last.ckpt")
    del content["state_dict"]
    if state is not None and state != {"w": 1}:
        content["state_dict"] = state
    if state == {"w": 1}:
        write_sealed([1, 2], tmp_path / content[SHARDS][1])
        content["state_dict"] = {}
    with pytest.raises(UserError, match="do not fit"):
        open_parts(content, tmp_path / "last.ckpt")


def test_a_file_that_is_nothing_but_a_seal_is_damaged(tmp_path: Path) -> None:
    training_files.make_checkpoint(tmp_path)
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    for kept in (len(whole) - whole.rindex(MARK), 10):
        path.write_bytes(whole[-kept:])
        assert damage(path)


def test_a_flipped_bit_in_saved_features_is_seen(tmp_path: Path) -> None:
    training_files.make_features(tmp_path)
    (path,) = tmp_path.glob("rank-*.pt")
    content = bytearray(path.read_bytes())
    place = content.find(struct.pack("<q", 3))
    content[place + 1] ^= 4
    path.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="sha256.*drawn anew"),
        pytest.raises(UserError, match="drawn anew"),
    ):
        training_files.read_features(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(ids=[1, 2]),
        lambda c: c.update(ids=torch.zeros(2)),
        lambda c: c.update(pool=5),
        lambda c: c["pool"].update(products=torch.zeros(3)),
        lambda c: c["pool"].update(count="x"),
        lambda c: c["rows"].update(ids=[1]),
        lambda c: c["rows"].update(ids=torch.arange(2)),
        lambda c: c["rows"].update(rows=0.5),
        lambda c: c.update(cost=5),
        lambda c: c.update(cost={"add": 5}),
        lambda c: c.update(drawing_s=[]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_features_of_another_form_are_not_taken(change: Change, tmp_path: Path) -> None:
    training_files.make_features(tmp_path)
    (path,) = tmp_path.glob("rank-*.pt")
    content = torch.load(path, weights_only=True)
    change(content)
    write_sealed(content, path)
    with pytest.raises(UserError):
        training_files.read_features(tmp_path)


@pytest.mark.parametrize("counts", [5, {"add": 1}, {"num_drawn": "x"}, {"num_drawn": -1}])
def test_counts_that_are_none_are_refused(counts: Any) -> None:
    with pytest.raises(UserError, match="damaged"):
        RejectionCost().add_counts(counts)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("module"),
        lambda c: c.update(step="3"),
        lambda c: c.update(parts=[]),
        lambda c: c.update(parts=5),
        lambda c: c["parts"][0].pop("seed"),
        lambda c: c["parts"][0].update(batch=5),
    ],
)
def test_half_a_bad_step_is_refused(change: Change, tmp_path: Path) -> None:
    training_files.make_bad_step(tmp_path)
    (path,) = tmp_path.glob("*.pt")
    content = read_bad_step(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match="bad-step"):
        read_bad_step(path)


def test_damaged_archives_of_official_weights_are_refused(tmp_path: Path) -> None:
    training_files.make_official(tmp_path)
    path = tmp_path / "a.pth"
    whole = path.read_bytes()
    place = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:place] + b"XX" + whole[place + 2 :])
    with pytest.raises(UserError, match=r"a\.pth is"):
        read_pickle(path)
    training_files.make_old_official(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"a\.pth is"):
        read_pickle(path)
    names = io.BytesIO()
    torch.save({"a": torch.ones(2)}, names)
    path.write_bytes(names.getvalue().replace(b"little", b"\0\0\0\0\0\0"))
    with pytest.raises(UserError) as caught:
        read_pickle(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("tokenizer", {"channels": True}),
        ("tokenizer", {"codebook_dim": "4"}),
        ("tokenizer", {"scales": [1, 2.0]}),
        ("tokenizer", {"scales": [1, 10**9]}),
        ("tokenizer", {"num_res_blocks": 10**9}),
        ("tokenizer", {"phi_ratio": float("nan")}),
        ("tokenizer", {"search": "fastest"}),
        ("var", {"depth": 10**9}),
        ("var", {"width": 2**40}),
        ("var", {"mlp_ratio": 1e300}),
        ("var", {"gamma_init": float("inf")}),
        ("num_classes", [2]),
        ("num_classes", 2.0),
        ("num_classes", -1),
        ("num_classes", "2"),
        ("class_names", 5),
        ("class_names", ["cat", 3]),
    ],
)
def test_a_config_of_other_types_is_refused_before_anything_is_built(
    part: str, change: Any, tmp_path: Path
) -> None:
    model_files.make_var(tmp_path)
    assert load_var(tmp_path).class_names == ("cat", "dog")
    folder = tmp_path / "tokenizer" if part == "tokenizer" else tmp_path
    content = json.loads((folder / "config.json").read_text())
    content[part] = content[part] | change if isinstance(change, dict) else change
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json"):
        (load_tokenizer if part == "tokenizer" else load_var)(folder)


def test_settings_are_held_to_their_types_and_bounds() -> None:
    with pytest.raises(UserError, match="depth must be a whole number; got '16'"):
        VARConfig.of({"depth": "16"})
    with pytest.raises(UserError, match=r"order must be next_scale or raster; got 'x'"):
        VARConfig.of({"order": "x"})
    with pytest.raises(UserError, match="gamma_init must be a finite number; got nan"):
        VARConfig.of(VARConfig(gamma_init=float("nan")))
    with pytest.raises(UserError, match="beyond all bounds: got 10,000 layers"):
        VARConfig(depth=10_000)
    assert VARConfig.of({"gamma_init": "1e-5"}) == VARConfig(gamma_init=1e-5), "as YAML 1.1 reads"
    assert TokenizerConfig.of({"scales": [1, 2]}) == TokenizerConfig(scales=(1, 2))


@pytest.mark.parametrize("sides", [5, [1.5], ["1"], [[1]], [None], [1, 2**20], range(1, 999)])
def test_scales_are_whole_numbers_within_bounds(sides: Any) -> None:
    with pytest.raises(UserError, match="scales must be"):
        Scales(sides)
