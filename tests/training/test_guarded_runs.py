"""Runs whose numbers break: counted, back once, stopped with a reason, replayed; on two ranks."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from varlit.callbacks.bad_steps import read_bad_step
from varlit.callbacks.guard import Guard
from varlit.callbacks.roll_back import last_good
from varlit.cli import main as command_line
from varlit.cli.running.replay import _replayed
from varlit.data.digits import DigitsDataModule
from varlit.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
SOURCE = Path(__file__).resolve().parents[2] / "src"
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


class Poison(Callback):
    """Makes the embedding of classes, or an image, NaN in each of some steps (the first is 1)."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 not in self.steps:
            return
        if "image" in batch:
            batch["image"][1, 0, 2, 2] = math.inf
        else:
            handle = module.network.class_embedding.register_forward_hook(
                lambda _, inputs, output: (handle.remove(), output * math.nan)[1]
            )


class Watch(Callback):
    """Keeps the weights and the logged scalars of every step."""

    def __init__(self):
        self.weights, self.logged, self.moments = [], [], []

    def on_train_batch_end(self, trainer, module, *args):
        self.weights.append({k: v.clone() for k, v in module.state_dict().items()})
        self.moments.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))
        told = {k: v.item() for k, v in trainer.callback_metrics.items()}
        self.logged.append({k: v for k, v in told.items() if math.isfinite(v)})


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_skipped_steps_are_counted_told_and_kept(
    make_var_module, make_trainer, tokens, tmp_path, capsys
):
    guard, watch = Guard(), Watch()
    trainer = make_trainer(guard, Poison({2, 4}), watch, max_steps=6)
    trainer.fit(make_var_module(), tokens)
    assert (guard.num_skipped, guard.num_roll_backs) == (2, 0)
    counts = [seen.get("optim/skipped_steps") for seen in watch.logged]
    assert counts == [None, None, 1, 1, 2, 2], "known a step later"
    told = capsys.readouterr().out
    assert "step 2 skipped: loss/mean is NaN or Inf; scale_loss is NaN or Inf; so are" in told
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["bad-step-0000002.pt", "bad-step-0000004.pt"]
    content = torch.load(tmp_path / names[0], weights_only=True)
    batches = list(tokens.train_dataloader().sampler.batches(0))
    (part,) = content["parts"]
    assert part["ids"] == batches[1].ids.tolist(), "the ids are those of the second batch"
    expected = tokens.source("train")[batches[1]]["tokens"]
    assert torch.equal(part["batch"]["tokens"], expected)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_run_resumed_around_a_skipped_step_equals_the_whole_one(
    make_tokenizer_module, make_trainer, save_at, tmp_path, assert_same, at
):
    found = []
    for callbacks, checkpoint in (([save_at(at, tmp_path / "a.ckpt")], None), ([], "a.ckpt")):
        guard, watch = Guard(), Watch()
        trainer = make_trainer(guard, Poison({3}), *callbacks, watch, max_steps=6)
        path = tmp_path / checkpoint if checkpoint else None
        data = DigitsDataModule(batch_size=4, image_size=16)
        module = make_tokenizer_module(disc_weight=0.5, disc_start=0.0)
        trainer.fit(module, data, ckpt_path=path, weights_only=True)
        assert guard.num_skipped == 1
        found.append((watch.weights[-1], watch.logged[-1], guard.state_dict()))
    for whole, resumed in zip(*found, strict=True):
        assert_same(resumed, whole)


def test_after_too_many_it_goes_back_once_and_on_with_other_images(
    make_var_module, make_trainer, tokens, checkpoints, capsys, assert_same, save_at
):
    guard, watch = Guard(max_bad_steps=3), Watch()
    save, later = save_at(2, checkpoints / "last.ckpt"), save_at(5, checkpoints / "late.ckpt")
    trainer = make_trainer(guard, Poison({4, 5, 6}), save, later, watch, max_steps=10)
    module = make_var_module()
    trainer.fit(module, tokens)
    assert trainer.global_step == 10
    assert (guard.num_skipped, guard.num_roll_backs) == (3, 1)
    # The third bad step is known after step 7, whose own update goes with the rest.
    content = torch.load(checkpoints / "last.ckpt", weights_only=True)
    saved = content["state_dict"]
    assert_same(watch.weights[6], dict(saved))
    assert_same(watch.moments[6], content["optimizer_states"][0]["state"])
    assert not torch.equal(watch.weights[9]["network.head.weight"], saved["network.head.weight"])
    assert "back to the weights of step 2" in capsys.readouterr().out, "5 is amid the bad ones"


def test_after_going_back_in_vain_it_stops_and_names_the_cure(
    make_var_module, make_trainer, tokens, checkpoints, save_at
):
    guard = Guard(max_bad_steps=3)
    trainer = make_trainer(
        guard, Poison(set(range(3, 99))), save_at(2, checkpoints / "last.ckpt"), max_steps=50
    )
    with pytest.raises(UserError) as refusal:
        trainer.fit(make_var_module(), tokens)
    # 3, 4, 5, known after 6, which is bad too and read before the weights are exchanged; 7 to 10.
    assert (guard.num_roll_backs, guard.num_skipped, trainer.global_step) == (1, 8, 10)
    told = str(refusal.value)
    assert "4 of the last 100 steps had NaN or Inf, and going back did not help" in told
    assert "seen in loss/mean, scale_loss, at a learning rate of" in told
    assert "--model.optim.lr 0.0025 (now 0.01)" in told
    assert f"--ckpt_path {checkpoints / 'last.ckpt'}" in told
    content = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2, "what was good is left alone"


def test_weights_that_are_damaged_or_broken_themselves_are_passed_over(
    make_var_module, make_trainer, tokens, checkpoints, save_at
):
    saves = [save_at(step, checkpoints / f"{step}.ckpt") for step in (1, 2, 3, 4)]
    make_trainer(*saves, max_steps=4).fit(make_var_module(), tokens)
    (checkpoints / "2.ckpt").write_bytes((checkpoints / "2.ckpt").read_bytes()[:-500])
    content = torch.load(checkpoints / "3.ckpt", weights_only=True)
    content["state_dict"]["network.head.weight"][0, 0] = math.nan
    torch.save(content, checkpoints / "3.ckpt")
    assert last_good(checkpoints, before_step=4) == checkpoints / "1.ckpt"
    assert last_good(checkpoints, before_step=5) == checkpoints / "4.ckpt"
    assert last_good(checkpoints, before_step=1) is None


def test_an_interrupted_run_that_had_gone_back_does_not_go_back_again(
    make_var_module, make_trainer, tokens, checkpoints, save_at
):
    poison = Poison({3, 4, 5, *range(9, 99)})
    saves = save_at(2, checkpoints / "last.ckpt"), save_at(8, checkpoints / "later.ckpt")
    make_trainer(Guard(max_bad_steps=3), poison, *saves, max_steps=8).fit(make_var_module(), tokens)
    guard = Guard(max_bad_steps=3)
    trainer, path = make_trainer(guard, poison, max_steps=50), checkpoints / "later.ckpt"
    with pytest.raises(UserError, match="going back did not help"):
        trainer.fit(make_var_module(), tokens, ckpt_path=path, weights_only=True)
    assert (guard.num_roll_backs, trainer.global_step) == (1, 12), "at the first three"


def test_images_that_hold_nan_are_named_in_place_of_the_rate(
    make_tokenizer_module, make_trainer, digits, tmp_path
):
    guard = Guard(max_bad_steps=2)
    with pytest.raises(UserError, match="there is no good checkpoint") as refusal:
        make_trainer(guard, Poison({2, 3}), max_steps=9).fit(make_tokenizer_module(), digits)
    batches = list(digits.train_dataloader().sampler.batches(0))
    second, third = (batches[place].ids.tolist()[1] for place in (1, 2))
    assert f"mend or remove the images that hold NaN or Inf, ids {second}, {third};" in str(
        refusal.value
    )


def test_a_rate_that_is_far_too_large_ends_with_its_cure(make_var_module, make_trainer, tokens):
    module = make_var_module(optim={"lr": 1e38, "warmup": 0.0, "schedule": "constant"})
    with pytest.raises(UserError, match=r"so it diverges: go on with --model.optim.lr 2.5e\+37"):
        make_trainer(Guard(), max_steps=99).fit(module, tokens)


def test_a_few_bad_steps_now_and_then_are_borne(make_var_module, make_trainer, tokens):
    guard = Guard(max_bad_steps=2, window_steps=3)
    make_trainer(guard, Poison({2, 6, 10}), max_steps=12).fit(make_var_module(), tokens)
    assert (guard.num_skipped, guard.num_roll_backs) == (3, 0)


def test_off_means_off(make_var_module, make_trainer, tokens):
    guard, watch = Guard(enabled=False), Watch()
    make_trainer(guard, Poison({2}), watch, max_steps=3).fit(make_var_module(), tokens)
    assert not torch.isfinite(watch.weights[-1]["network.head.weight"]).all()


def replayed(capsys, *words):
    capsys.readouterr()
    assert command_line.main(["replay", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_replay_finds_where_the_nan_of_an_image_begins(
    make_tokenizer_module, make_trainer, digits, checkpoints, tmp_path, capsys, save_at
):
    save = save_at(2, checkpoints / "last.ckpt")
    make_trainer(Guard(), Poison({3}), save, max_steps=4).fit(make_tokenizer_module(), digits)
    told = replayed(capsys, tmp_path / "bad-step-0000003.pt", "--device", "cpu")
    assert "with the weights of step 2 in 32-true" in told
    assert "first NaN or Inf: network.encoder.conv_in (its weights are finite)" in told
    assert "losses with NaN or Inf" in told
    assert "gradients with NaN or Inf" in told


def test_a_replay_is_the_very_step(
    make_var_module,
    make_tokenizer_module,
    make_trainer,
    tokens,
    digits,
    checkpoints,
    tmp_path,
    save_at,
    monkeypatch,
):
    """With its draws (drop path, dropped labels), and at its place: the game is on by then."""

    class BreakGradient(Callback):
        def on_after_backward(self, trainer, module):
            if trainer.global_step == 2:
                next(module.network.parameters()).grad.fill_(math.inf)

    for make, data in (
        (make_var_module, tokens),
        (lambda: make_tokenizer_module(disc_weight=0.5, disc_start=0.5), digits),
    ):
        path = checkpoints / f"{type(data).__name__}.ckpt"
        trainer = make_trainer(Guard(), BreakGradient(), save_at(2, path), max_steps=4)
        monkeypatch.setenv("PL_GLOBAL_SEED", "7")
        trainer.fit(make(), data)
        monkeypatch.delenv("PL_GLOBAL_SEED")
        content = read_bad_step(tmp_path / "bad-step-0000003.pt")
        replay = _replayed(content, path, "cpu", content["precision"])
        assert replay.reading.loss == content["loss"]
        assert not replay.reading.was_skipped
        assert replay.terms == list(content["terms"][0])
    assert "gan/disc_loss" in replay.terms


def test_a_replay_with_sound_weights_acquits_the_images(
    make_var_module, make_trainer, tokens, checkpoints, tmp_path, capsys, save_at
):
    watch, save = Watch(), save_at(2, checkpoints / "last.ckpt")
    trainer = make_trainer(
        Guard(), Poison({3}), save, watch, max_steps=4, accumulate_grad_batches=2
    )
    trainer.fit(make_var_module(), tokens)
    told = replayed(capsys, tmp_path / "bad-step-0000003.pt", "--device", "cpu")
    assert "all numbers are finite: loss" in told
    assert "its images were not at fault, but the weights of step 3" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad-step-0000003.pt",
        "checkpoints",
    ]


def test_a_replay_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"cos\nsystem\n(S'echo hacked'\ntR.")
    torch.save({"step": 1}, tmp_path / "b.pt")
    for name, message in (("a", "damaged"), ("b", "is no bad-step"), ("c", "no such file")):
        assert command_line.main(["replay", str(tmp_path / f"{name}.pt")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_nan_in_one_process_is_skipped_by_all(cache, tmp_path):
    worker = Path(__file__).with_name("guarded_worker.py")
    done = subprocess.run(
        [*TWO, str(worker), str(cache), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("image", "term", "ddp", "fsdp"):
        ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks[0] == ranks[1], "both have skipped the same step, and hold the same weights"
        assert ranks[0]["skipped"] == [False, False, True, False]
        assert ranks[0]["stood_still"] == [False, False, True, False]
        assert ranks[0]["finite"]
        files = {path.name for path in (tmp_path / name).glob("bad-step*.pt")}
        assert files == {"bad-step-0000003-rank0.pt", "bad-step-0000003-rank1.pt"}
        own = torch.load(tmp_path / name / "bad-step-0000003-rank1.pt", weights_only=True)
        assert own["broken_terms"], "the process that has it knows the loss"
