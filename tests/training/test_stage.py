from types import SimpleNamespace

import pytest
import torch

from varlit.errors import UserError
from varlit.training.stage import StageModule


class Toy(StageModule):
    architecture_keys = ("net", "size")

    def __init__(self, net, size=3, free=0):
        super().__init__()
        self.save_hyperparameters({"net": net, "size": size, "free": free})


def checkpoint_of(module):
    return {"hyper_parameters": dict(module.hparams)}


def test_the_same_architecture_is_taken_whatever_else_has_changed():
    Toy({"depth": 2, "scales": [1, 2]}, free=1).on_load_checkpoint(
        checkpoint_of(Toy({"depth": 2, "scales": (1, 2)}, free=2))
    )


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (Toy({"depth": 4}), "has net.depth = 4, but now it is 2. Set it back, or .*--name"),
        (Toy({"depth": 2, "old": 1}), "has net.old = 1, but now it is None"),
        (Toy({"depth": 2}, size=9), "has size = 9, but now it is 3"),
    ],
)
def test_another_architecture_is_refused_by_the_name_of_the_field(saved, message):
    with pytest.raises(UserError, match=message):
        Toy({"depth": 2}).on_load_checkpoint(checkpoint_of(saved))


def draws(monkeypatch, seed="5", accumulate=1, world=1, rank=0, step=0, batch_idx=0):
    monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    module = Toy({})
    trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate, world_size=world, global_step=step, global_rank=rank
    )
    monkeypatch.setattr(Toy, "trainer", trainer)
    monkeypatch.setattr(Toy, "global_step", step)
    monkeypatch.setattr(Toy, "global_rank", rank)
    module.on_train_batch_start(None, batch_idx)
    return torch.rand(1).item()


def test_randomness_is_a_function_of_seed_step_micro_step_and_rank(monkeypatch):
    places = [
        {"step": step, "rank": rank, "batch_idx": micro}
        for step in range(4)
        for rank in range(2)
        for micro in range(3)
    ]
    common = {"accumulate": 3, "world": 2}
    found = [draws(monkeypatch, **common, **place) for place in places]
    assert len(set(found)) == len(found), "no two of them share their numbers"
    assert found == [draws(monkeypatch, **common, **place) for place in places]
    assert found[0] != draws(monkeypatch, seed="6", **common, **places[0])
    later = draws(monkeypatch, **common, step=3, rank=1, batch_idx=3 * 100 + 2)
    assert later == found[-1], "the number of batches seen before does not matter"


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true"])
def test_precisions_that_would_change_the_recipe_are_refused(monkeypatch, precision):
    monkeypatch.setattr(Toy, "trainer", SimpleNamespace(precision=precision))
    with pytest.raises(UserError, match=rf"{precision} is not supported; take 32-true or bf16"):
        Toy({}).setup("fit")


def test_a_file_that_one_process_cannot_open_is_refused_everywhere(monkeypatch):
    strategy = SimpleNamespace(barrier=lambda name: None)
    monkeypatch.setattr(Toy, "trainer", SimpleNamespace(strategy=strategy))
    monkeypatch.setattr(Toy, "global_rank", 0)
    monkeypatch.setattr("varlit.training.stage.sum_over_ranks", lambda mine: mine + 1)
    with pytest.raises(UserError, match="another process could not open"):
        Toy({}).open_together(lambda: "opened")
    monkeypatch.setattr("varlit.training.stage.sum_over_ranks", lambda mine: mine)
    assert Toy({}).open_together(lambda: "opened") == "opened"
