"""What a run may go back to: all that is put in place is finite, and today's settings hold."""

import math

import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.roll_back import last_good, roll_back
from varlit.training.sealing import read_seal, write_sealed
from varlit.training.shard_files import SHARDS, SUMS

WEIGHT = "network.head.weight"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(make_var_module, make_trainer, tokens, tmp_path, save_at):
    """Whole checkpoints of the first two steps."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    saves = [save_at(step, folder / f"{step}.ckpt") for step in (1, 2)]
    make_trainer(*saves, max_steps=2).fit(make_var_module(), tokens)
    return folder


def read(path):
    return torch.load(path, weights_only=True)


def slot(content, name):
    return next(iter(content["optimizer_states"][0]["state"].values()))[name]


@pytest.mark.parametrize(
    "find",
    [
        lambda content: content["state_dict"][WEIGHT],
        lambda content: content["state_dict"][WEIGHT.replace("network", "average")],
        lambda content: slot(content, "exp_avg"),
        lambda content: slot(content, "exp_avg_sq"),
    ],
    ids=["weights", "averages", "first moments", "second moments"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_is_passed_over_whatever_is_not_finite(folder, find, value):
    assert last_good(folder, before_step=3) == folder / "2.ckpt"
    content = read(folder / "2.ckpt")
    find(content).flatten()[0] = value
    write_sealed(content, folder / "2.ckpt")
    assert last_good(folder, before_step=3) == folder / "1.ckpt"


def split(path, weight, moment):
    """Write a checkpoint in two parts: each has half of the rows of a weight and of its moment."""
    content = read(path)
    places = {("state_dict", WEIGHT): weight, ("optimizer_states", 0, "state", 0, "slot"): moment}
    del content["state_dict"][WEIGHT]
    content["optimizer_states"] = [{"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": []}]
    path.with_suffix(".parts").mkdir()
    names, sums = [f"{path.stem}.parts/{number}.pt" for number in range(2)], []
    for number, name in enumerate(names):
        rows = {place: value.chunk(2)[number].clone() for place, value in places.items()}
        write_sealed(rows, path.parent / name)
        sums.append(read_seal(path.parent / name).sha256)
    write_sealed(content | {SHARDS: names, SUMS: sums}, path)


@pytest.mark.parametrize(
    ("weight", "moment", "is_good"),
    [(1.0, 1.0, True), (math.nan, 1.0, False), (1.0, math.inf, False)],
)
def test_the_parts_of_a_checkpoint_are_looked_into(folder, weight, moment, is_good):
    values = torch.ones(4, 3), torch.ones(4, 3)
    values[0][3, 0], values[1][3, 0] = weight, moment  # in the second part
    split(folder / "2.ckpt", *values)
    found = last_good(folder, before_step=3)
    assert found == folder / ("2.ckpt" if is_good else "1.ckpt")


def test_parts_that_do_not_fit_are_passed_over(folder):
    split(folder / "2.ckpt", torch.ones(4, 3), torch.ones(4, 3))
    content = read(folder / "2.ckpt")
    del content["optimizer_states"]
    write_sealed(content, folder / "2.ckpt")
    assert last_good(folder, before_step=3) == folder / "1.ckpt"


class GoBack(Callback):
    """Goes back to a checkpoint after the first step."""

    def __init__(self, path):
        self.path, self.groups = path, []

    def on_train_batch_end(self, trainer, module, *args):
        assert roll_back(trainer, module, self.path) == 2
        self.groups = trainer.optimizers[0].param_groups


def test_going_back_leaves_todays_settings_in_force(
    folder, make_var_module, make_trainer, tokens, assert_same
):
    module = make_var_module(optim={"weight_decay": 0.25, "betas": (0.9, 0.5)})
    back = GoBack(folder / "2.ckpt")
    make_trainer(back, max_steps=1).fit(module, tokens)
    assert_same(dict(module.state_dict()), dict(read(folder / "2.ckpt")["state_dict"]))
    saved = read(folder / "2.ckpt")["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in saved}.isdisjoint({0.25})
    assert max(group["weight_decay"] for group in back.groups) == 0.25
    assert {group["betas"][1] for group in back.groups} == {0.5}
