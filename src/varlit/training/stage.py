"""What the LightningModules of both stages share: length, batch, seeds, resuming safely."""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from varlit.errors import UserError
from varlit.metrics.ranks import sum_over_ranks
from varlit.training import resuming
from varlit.training.guard import StepGuard

SEED_STRIDE = 1_000_003
PRECISIONS = ("32-true", "bf16-mixed")
T = TypeVar("T")


class StageModule(LightningModule):
    """A stage of training whose randomness and schedules are functions of the step."""

    # How the last test measured, for metrics.json.
    test_protocol: dict[str, Any]

    # Keys of hyper_parameters that decide the shapes of weights, by group.
    architecture_keys: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.guard = StepGuard()
        # A step that is replayed draws what it drew then; else drawing is up to the step's place.
        self.replayed_seeds: list[int] = []
        # What is counted from one logged step to the next, by name; checkpoints keep it.
        self.since_log: dict[str, Tensor] = {}
        self._owed: dict[str, Any] = {}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return int(self.trainer.estimated_stepping_batches)

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step over all devices."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return int(getattr(datamodule, "batch_size", 256))

    @property
    def is_log_step(self) -> bool:
        """Whether Lightning will write this step's scalars; only then are they computed."""
        every: int = getattr(self.trainer, "log_every_n_steps", 1)
        return (self.global_step + 1) % every == 0

    def ends_step(self, batch_idx: int) -> bool:
        """Whether this batch is the last that its optimizer step accumulates."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def log_at(self, scalars: Mapping[str, float | Tensor], step: int) -> None:
        """Log scalars at a number of optimizer steps; Lightning's own x-axis counts from 0."""
        axis = {"step": float(step)} if self.trainer.state.fn == TrainerFn.FITTING else {}
        self.log_dict({**scalars, **axis})

    def setup(self, stage: str) -> None:
        """Refuse precisions in which a step would not be what the recipe means.

        Raises:
            UserError: For fp16, whose scaled gradients would be clipped, and for pure bf16, in
                which the quantizer and the sums over steps lose their digits.
        """
        if self.trainer.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision {self.trainer.precision} is not supported; take "
                f"{' or '.join(PRECISIONS)}"
            )

    def on_train_start(self) -> None:
        """Let today's settings win, and DDP exchange every part where its graph is static.

        torch takes betas and weight decay from a checkpoint along with the state. And its `no_sync`
        in the first pass of a static graph ends in an internal assertion; the gradients are the
        same without, a mean of means. At last make up for what a resumed run owes.
        """
        self.prefer_todays_settings()
        strategy = self.trainer.strategy
        if isinstance(strategy.model, DistributedDataParallel) and strategy.model.static_graph:
            strategy.block_backward_sync = nullcontext  # type: ignore[attr-defined]
        self.prepare_network()
        owed, self._owed = self._owed, {}
        if owed:
            resuming.catch_up(self.trainer, owed)

    def prepare_network(self) -> None:
        """For stages: what is done to a network whose weights are in place, before any use."""

    def prefer_todays_settings(self) -> None:
        """Put the settings of the optimizer in place of those that came with a checkpoint."""
        fresh = self.configure_optimizers()
        assert isinstance(fresh, torch.optim.Optimizer)
        groups = self.trainer.optimizers[0].param_groups
        for group, new in zip(groups, fresh.param_groups, strict=True):
            # The rate stays the last step's until the next one sets it, as in a whole run.
            kept = ("params", "lr")
            group.update({name: value for name, value in new.items() if name not in kept})

    def open_together(self, open_one: Callable[[], T]) -> T:
        """Open something that may be downloaded: rank 0 first, and all processes or none.

        Raises:
            UserError: On every process, if `open_one` raised it on any.
        """
        opened: list[T] = []
        error: UserError | None = None
        for is_my_turn in (self.global_rank == 0, self.global_rank != 0):
            if is_my_turn:
                try:
                    opened.append(open_one())
                except UserError as raised:
                    error = raised
            self.trainer.strategy.barrier("open together")
        failures = sum_over_ranks(torch.tensor([float(error is not None)]))
        if error is None and failures.sum() > 0:
            error = UserError("another process could not open a file; see its message")
        if error is not None:
            raise error
        return opened[0]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this step by (seed, step, rank): a resumed run draws what the whole one drew."""
        torch.manual_seed(self.draw_seed(batch_idx))

    def draw_seed(self, batch_idx: int) -> int:
        """Seed of the draws in this part of the running step."""
        micro_step = batch_idx % self.trainer.accumulate_grad_batches
        if self.replayed_seeds:
            return self.replayed_seeds[micro_step]
        # Without `seed_everything` there is none, and the steps are still apart from each other.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        place = self.global_step * self.trainer.accumulate_grad_batches + micro_step
        place = place * self.trainer.world_size + self.global_rank
        return (seed * SEED_STRIDE + place) % 2**63

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: counts, and what is owed."""
        counts = {name: count.detach().cpu() for name, count in self.since_log.items()}
        checkpoint[resuming.KEY] = {**resuming.note(self.trainer), "since_log": counts}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture by the name of the field.

        Raises:
            UserError: With both values and the two ways out.
        """
        self._refuse_others(checkpoint)
        is_fit = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if is_fit and resuming.KEY in checkpoint:
            self._owed = checkpoint[resuming.KEY]
            self.since_log.update(self._owed["since_log"])
            resuming.let_it_end(self.trainer, self._owed)

    def _refuse_others(self, checkpoint: dict[str, Any]) -> None:
        saved, today = checkpoint.get("hyper_parameters", {}), self.hparams
        for group in self.architecture_keys:
            before, now = _flatten(group, saved.get(group)), _flatten(group, today.get(group))
            for key in sorted(set(before) | set(now)):
                if before.get(key) != now.get(key):
                    raise UserError(
                        f"the checkpoint of this run has {key} = {before.get(key)}, but now it is "
                        f"{now.get(key)}. Set it back, or start another run with another --name"
                    )


def _flatten(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {f"{name}.{key}": _plain(item) for key, item in value.items()}
    return {name: _plain(value)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
