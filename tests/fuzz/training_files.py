"""What runs leave: checkpoints, their parts, evidence of bad steps, features of an evaluation."""

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from tests.fuzz.kinds import Kind, Refused
from tests.fuzz.mutations import mutate_bytes, mutate_tree, mutate_zip
from varlit.callbacks.bad_steps import read_bad_step
from varlit.checkpoints.official_pickles import read_pickle
from varlit.errors import UserError
from varlit.generation.rejection.rule import RejectionCost
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.training.checkpoint_files import damage, newest_whole, read_checkpoint
from varlit.training.evaluation_saved import SavedFeatures
from varlit.training.sealing import read_seal, write_sealed
from varlit.training.shard_files import SHARDS, SUMS, joined_tree, open_parts


def checkpoint_content() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "global_step": 7,
        "epoch": 1,
        "hyper_parameters": {"var": {"depth": 2}, "classes": ("a", "b")},
        "state_dict": {"w": torch.randn(4, 5), "n": torch.arange(6), "h": torch.ones(3).half()},
        "optimizer_states": [{"step": torch.tensor(7.0), "exp_avg": torch.randn(20)}],
        "callbacks": {"KeepBest": {"value": 1.5, "step": None}},
    }


def remade(content: bytes, draw: Random) -> bytes:
    """Another tree in a sound file with a right sum: what somebody could have made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content)
        has_seal = read_seal(path) is not None
        tree = mutate_tree(torch.load(path, weights_only=True), draw)
        if has_seal:
            write_sealed(tree, path)
        else:
            torch.save(tree, path)
        return path.read_bytes()


def make_checkpoint(folder: Path) -> None:
    write_sealed(checkpoint_content(), folder / "last.ckpt")


def make_old_checkpoint(folder: Path) -> None:
    torch.save(checkpoint_content(), folder / "last.ckpt")


def read_whole(folder: Path) -> Any:
    path = folder / "last.ckpt"
    reason = damage(path)
    assert (newest_whole(folder).path is None) == bool(reason)
    if reason:
        raise Refused(reason)
    return read_checkpoint(path)


def judge_checkpoint(got: Any, original: Any) -> str:
    return "" if isinstance(got, dict) and "hyper_parameters" in got else "no checkpoint"


def make_parts(folder: Path) -> None:
    (folder / "last.parts").mkdir()
    names, sums = [f"last.parts/{part}.pt" for part in range(2)], []
    for part, name in enumerate(names):
        write_sealed({("state_dict", "w"): torch.full((2, 3), float(part))}, folder / name)
        seal = read_seal(folder / name)
        assert seal is not None
        sums.append(seal.sha256)
    content = checkpoint_content() | {"state_dict": {"n": torch.arange(3)}}
    write_sealed(content | {SHARDS: names, SUMS: sums}, folder / "last.ckpt")


def read_parts(folder: Path) -> Any:
    content = read_whole(folder)
    if SHARDS not in content:
        raise Refused("it is no index")
    return joined_tree(open_parts(content, folder / "last.ckpt"))


class Colours(nn.Module):
    """Features of a picture without learning anything."""

    def forward(self, images: torch.Tensor) -> Features:
        pool = images.float().mean((2, 3))
        return Features(pool, pool[:, :2], pool * 2)


def empty_features() -> ImageFeatures:
    return ImageFeatures(FeatureNetwork(Colours(), "colours"), max_rows=4)


def make_features(folder: Path) -> None:
    features = empty_features()
    images = torch.linspace(-1, 1, 6 * 3 * 4 * 4).reshape(6, 3, 4, 4)
    features.update(torch.arange(6), images)
    SavedFeatures(folder, 0, RejectionCost(num_drawn=9)).save(features)


def read_features(folder: Path) -> Any:
    features, cost = empty_features(), RejectionCost()
    SavedFeatures(folder, 0, cost).load_into(features)
    if not features.count:
        raise Refused("the images are drawn anew")
    return features.state_dict() | {"cost": cost.counts()}


def judge_features(got: Any, original: Any) -> str:
    """What somebody made anew is as good as what we made: numbers of the right form."""
    return "" if got.keys() == original.keys() and got["ids"].dtype == torch.int64 else str(got)


def make_bad_step(folder: Path) -> None:
    batch = {"image": torch.zeros(2, 3, 4, 4), "label": torch.arange(2), "id": torch.arange(2)}
    torch.save(
        {
            "module": "TokenizerModule",
            "step": 3,
            "total_steps": 10,
            "precision": "32-true",
            "parts": [{"batch": batch, "ids": [0, 1], "seed": 5}],
        },
        folder / "bad-step-0000003.pt",
    )


def read_step(folder: Path) -> Any:
    return read_bad_step(folder / "bad-step-0000003.pt")


def judge_step(got: Any, original: Any) -> str:
    """What `varlit replay` asks of it can be had."""
    numbers = [got["step"], got["total_steps"], *(part["seed"] for part in got["parts"])]
    right = all(type(number) is int for number in numbers) and len(numbers) > 2
    right &= isinstance(got["module"], str) and isinstance(got["precision"], str)
    return "" if right and all(isinstance(p["batch"], dict) for p in got["parts"]) else f"{got}"


def make_official(folder: Path) -> None:
    torch.save({"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}, folder / "a.pth")


def make_old_official(folder: Path) -> None:
    content = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}
    torch.save(content, folder / "a.pth", _use_new_zipfile_serialization=False)


def accept(got: Any, original: Any) -> str:
    """For files without a sum, whose reader promises plain data and nothing of its values."""
    return ""


def read_official(folder: Path) -> Any:
    content = read_pickle(folder / "a.pth")
    if not isinstance(content, dict):
        raise UserError("no weights")
    return content


KINDS = (
    Kind("checkpoint", make_checkpoint, read_whole, share=2),
    Kind(
        "checkpoint, remade",
        make_checkpoint,
        read_whole,
        {"*": (remade, mutate_zip)},
        judge_checkpoint,
        right="a checkpoint",
    ),
    Kind("checkpoint without sum", make_old_checkpoint, read_whole),
    Kind("checkpoint in parts", make_parts, read_parts),
    Kind(
        "checkpoint in parts, remade",
        make_parts,
        read_parts,
        {"*": (remade,)},
        judge_checkpoint,
        right="a checkpoint",
    ),
    Kind("features of an evaluation", make_features, read_features),
    Kind(
        "features, remade",
        make_features,
        read_features,
        {"*": (remade, mutate_zip)},
        judge_features,
        right="features",
    ),
    Kind(
        "bad step",
        make_bad_step,
        read_step,
        {"*": (mutate_bytes, mutate_zip, remade)},
        judge_step,
        right="a step",
    ),
    Kind(
        "official checkpoint",
        make_official,
        read_official,
        {"*": (mutate_bytes, mutate_zip)},
        accept,
        right="plain data",
    ),
    Kind(
        "official checkpoint, old",
        make_old_official,
        read_official,
        judge=accept,
        right="plain data",
    ),
)
