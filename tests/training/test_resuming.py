"""What a checkpoint came before is made up for: scalars, a validation, the end of a training."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from varlit.data.digits import DigitsDataModule
from varlit.data.tokens.module import TokenDataModule

pytestmark = pytest.mark.filterwarnings("ignore")


class Lines(Logger):
    """Keeps what is logged, by step and tag; of two the later one."""

    name = version = ""

    def __init__(self):
        super().__init__()
        self.lines, self.trainer = {}, None

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.lines |= {(self.trainer.global_step, tag): value for tag, value in metrics.items()}


class Watch(Callback):
    """Notes validations and ends; saves and stops where it is told to, as a signal has it done."""

    def __init__(self, path=None, step=-1, at="batch"):
        self.path, self.step, self.at = path, step, at
        self.validations, self.ends = [], 0

    def _stop(self, trainer, at):
        if (trainer.global_step, at) == (self.step, self.at):
            trainer.save_checkpoint(self.path)
            raise SystemExit

    def on_train_batch_end(self, trainer, *args):
        self._stop(trainer, "batch")

    def on_validation_batch_end(self, trainer, *args):
        self._stop(trainer, "validation")

    def on_validation_end(self, trainer, *args):
        self.validations.append(trainer.global_step)
        self._stop(trainer, "end")

    def on_train_end(self, trainer, *args):
        self.ends += 1
        if self.path is not None:
            trainer.save_checkpoint(self.path)


EPOCHS = {"max_steps": -1, "max_epochs": 3, "limit_train_batches": 3, "limit_val_batches": 2}


@pytest.fixture
def go(make_trainer):
    """Train until the end or a stop; returns what was logged, what was watched, and the state."""

    def run(module, data, watch, start=None, **length):
        lines = Lines()
        trainer = make_trainer(watch, logger=lines, **({"log_every_n_steps": 2} | length))
        lines.trainer = trainer
        try:
            trainer.fit(module, data, ckpt_path=start, weights_only=True)
        except SystemExit:
            return lines.lines, None
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        return lines.lines, weights | {"step": trainer.global_step}

    return run


def stages(make_tokenizer_module, make_var_module, cache):
    game = {"disc_weight": 0.5, "disc_start": 0.3, "disc_warmup": 0.4}
    codebook = {"init": "kmeans", "restart_below": 0.5}
    yield (
        lambda: make_tokenizer_module(codebook=codebook, **game),
        lambda: DigitsDataModule(batch_size=4, image_size=16),
    )
    yield (
        lambda: make_var_module(optim={"grad_clip": 0.5}),
        lambda: TokenDataModule(str(cache), batch_size=8),
    )


@pytest.fixture(params=[0, 1], ids=["tokenizer", "var"])
def stage(request, make_tokenizer_module, make_var_module, cache):
    return list(stages(make_tokenizer_module, make_var_module, cache))[request.param]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        [(4, "batch")],  # a step that is logged
        [(3, "batch"), (5, "batch"), (6, "batch"), (8, "batch")],  # two ends of epochs
        [(3, "validation"), (6, "end"), (6, "validation"), (8, "batch")],
        [(9, "batch"), (9, "validation")],
    ],
    ids=["logged", "epochs", "validations", "last"],
)
def test_stopped_anywhere_a_run_logs_validates_and_ends_as_the_whole_one(
    stage, go, tmp_path, assert_same, stops
):
    make_module, make_data = stage
    path, whole_watch = tmp_path / "a.ckpt", Watch(tmp_path / "whole.ckpt")
    lines, weights = go(make_module(), make_data(), whole_watch, **EPOCHS)
    assert whole_watch.validations == [3, 6, 9]
    found, validations = {}, []
    for stop in [*stops, None]:
        watch = Watch(path, *(stop or ()))
        start = path if path.exists() else None
        told, ended = go(make_module(), make_data(), watch, start, **EPOCHS)
        found |= told
        validations += watch.validations
    assert ended is not None
    assert_same(ended, weights)
    assert_same(found, lines)
    assert sorted(set(validations)) == [3, 6, 9]
    first, second = (torch.load(p, weights_only=True) for p in (tmp_path / "whole.ckpt", path))
    assert_same(second["loops"], first["loops"])
    assert second["resuming"] == first["resuming"]


@pytest.mark.parametrize("max_steps", [3, 4], ids=["at an epoch's end", "in an epoch"])
def test_a_training_counted_in_steps_that_was_cut_off_at_its_last_is_ended(
    make_var_module, cache, go, tmp_path, max_steps
):
    length = EPOCHS | {"max_steps": max_steps, "max_epochs": None}
    path = tmp_path / "a.ckpt"
    data = TokenDataModule(str(cache), batch_size=8)
    go(make_var_module(), data, Watch(path, max_steps), **length)
    watch = Watch(path)
    _, ended = go(make_var_module(), data, watch, path, **length)
    assert ended["step"] == max_steps
    assert watch.validations == [3][: max_steps == 3]
    assert watch.ends == 1
    again = Watch(path)
    go(make_var_module(), data, again, path, **length)
    assert (again.ends, again.validations) == (0, []), "it is over"


def test_what_is_counted_between_two_logged_steps_is_kept(make_var_module, cache, go, tmp_path):
    class Counts(Watch):
        counts = None

        def on_train_batch_start(self, trainer, pl_module, *args):
            self.counts = self.counts or dict(pl_module.since_log)

    path, data = tmp_path / "a.ckpt", TokenDataModule(str(cache), batch_size=8)
    optim = {"grad_clip": 1e-6}
    go(make_var_module(optim=optim), data, Watch(path, 4), **EPOCHS | {"log_every_n_steps": 6})
    watch = Counts()
    go(make_var_module(optim=optim), data, watch, path, **EPOCHS | {"log_every_n_steps": 6})
    counts = {name: float(count) for name, count in watch.counts.items()}
    assert counts == {"clipped": 4, "clippable": 4}
