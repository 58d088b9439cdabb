"""Every reader of weights, arrays and caches meets a pickle that runs code, and does not run it."""

import contextlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from varlit.checkpoints.official_pickles import read_pickle
from varlit.data.formats import chunk_index, cifar_batches, folder_index, tar_index
from varlit.data.tokens.importing import open_llamagen
from varlit.errors import UserError
from varlit.losses import perceptual
from varlit.metrics.frechet import read_statistics
from varlit.metrics.inception import load_inception
from varlit.metrics.npz_images import NpzImages
from varlit.metrics.references import _held
from varlit.models import vision_transformer
from varlit.models.classifier import open_classifier
from varlit.models.mobilenet import load_mobilenet
from varlit.training import evaluation_saved, shard_files
from varlit.training.checkpoint_files import read_checkpoint
from varlit.training.sharding import ShardedStrategy

WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "a run's checkpoint": read_checkpoint,
    "an official checkpoint": read_pickle,
    "the trunk of LPIPS": lambda path: perceptual._read_trunk(path, "vgg"),
    "Inception": load_inception,
    "MobileNet": load_mobilenet,
    "DINO": lambda path: vision_transformer._read(path, "vit"),
    "a classifier": lambda path: open_classifier("torchvision:squeezenet1_1", str(path)),
    "a part of a checkpoint": lambda path: shard_files._read_part(path, path),
    "features of an evaluation": lambda path: evaluation_saved._told(path)[0],
}


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    """What a reader gives, or the message that it refuses with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(path)
        except UserError as error:
            return str(error)


@pytest.mark.parametrize("layout", ["zip", "old", "bare"])
@pytest.mark.parametrize("reader", WEIGHTS)
def test_weights_that_run_code_are_refused(
    reader: str, layout: str, tmp_path: Path, bomb: Any
) -> None:
    path = tmp_path / "weights.pth"
    if layout == "bare":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save({"ids": bomb}, path, _use_new_zipfile_serialization=layout == "zip")
    told = outcome(WEIGHTS[reader], path)
    assert told is None or str(path) in told, "what cannot be read is refused, or as good as none"


def test_fsdp_does_not_run_a_checkpoint(tmp_path: Path, bomb: Any) -> None:
    torch.save({"state_dict": bomb}, tmp_path / "last.ckpt")
    strategy = ShardedStrategy.__new__(ShardedStrategy)
    strategy.broadcast = lambda value, src=0: value  # type: ignore[method-assign]
    with pytest.raises(pickle.UnpicklingError):
        strategy.load_checkpoint(tmp_path / "last.ckpt", weights_only=False)


def test_torchvisions_weights_in_the_cache_of_the_hub_are_not_run(
    tmp_path: Path, bomb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"a": bomb}, tmp_path / "hub" / "checkpoints" / file)
    with contextlib.suppress(UserError, pickle.UnpicklingError):
        open_classifier("torchvision:squeezenet1_1", "download")


ARRAYS: dict[str, Callable[[Path], Any]] = {
    "statistics": read_statistics,
    "images to judge": NpzImages,
    "names in a reference": lambda path: _held(path) and read_statistics(path),
    "the index of a tar": tar_index._load,
    "the index of folders": folder_index._read,
    "the index of chunks": lambda path: chunk_index._recall(path, 1),
}


@pytest.mark.parametrize("reader", ARRAYS)
def test_arrays_of_objects_are_refused(reader: str, tmp_path: Path, bomb: Any) -> None:
    objects = np.array([bomb], dtype=object)
    names = ("mu", "sigma", "arr_0", "about", "names", "places", "num_names", "num_folders")
    np.savez(tmp_path / "arrays.npz", **dict.fromkeys(names, objects))
    told = outcome(ARRAYS[reader], tmp_path / "arrays.npz")
    assert not told or "arrays.npz" in told


def test_a_plain_pickle_under_the_name_of_an_array_is_refused(tmp_path: Path, bomb: Any) -> None:
    path = tmp_path / "arrays.npz"
    path.write_bytes(pickle.dumps(bomb))
    for read in (read_statistics, NpzImages, _held):
        with pytest.raises(UserError, match=r"arrays\.npz cannot be read"):
            read(path)
    assert tar_index._load(path) is None


def test_tokens_of_other_programs_are_not_unpickled(tmp_path: Path, bomb: Any) -> None:
    for folder in ("x_codes", "x_labels"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "0.npy", np.array([bomb], dtype=object), allow_pickle=True)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["x_codes", "x_labels"]
    with pytest.raises(UserError, match="cannot read"):
        open_llamagen(tmp_path)


def test_cifar_pickles_build_arrays_and_nothing_else(
    tmp_path: Path, bomb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_batches, "_is_genuine", lambda content, md5: True)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": bomb}, protocol=2))
    with pytest.raises(UserError, match="which is code"):
        cifar_batches.read_batch(tmp_path / "batch", "")


def test_members_of_an_npz_go_nowhere(tmp_path: Path) -> None:
    """An .npz is a zip: its names could be paths, if anybody unpacked it."""
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "mu.npy", np.zeros(2))
    content = (folder / "mu.npy").read_bytes()
    (folder / "mu.npy").unlink()
    with zipfile.ZipFile(folder / "arrays.npz", "w") as archive:
        for name in ("../escaped.npy", f"{tmp_path}/absolute.npy", "mu.npy", "arr_0.npy"):
            archive.writestr(name, content)
    for read in (read_statistics, NpzImages):
        with pytest.raises(UserError):
            read(folder / "arrays.npz")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["arrays.npz"]


def test_an_array_that_claims_terabytes_is_refused_without_room_for_it(tmp_path: Path) -> None:
    header = str({"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}).encode()
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(f"{name}.npy", npy)
    with pytest.raises(UserError, match="cannot be read"):
        read_statistics(tmp_path / "arrays.npz")


def test_deep_json_is_refused_in_one_line(tmp_path: Path) -> None:
    from varlit.data.whole_files import read_json
    from varlit.models.files import read_model_config

    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "config.json")
    with pytest.raises(UserError, match="not valid JSON"):
        read_model_config(tmp_path)
    assert json.loads("[[]]") == [[]]
