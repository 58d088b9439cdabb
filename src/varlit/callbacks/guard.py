"""What becomes of a run whose numbers break: steps skipped, once back, and an end with a reason."""

from collections import deque
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from varlit.callbacks.bad_steps import BadStep, Part, keep_evidence, note_part, some
from varlit.callbacks.roll_back import checkpoint_folder, last_good, roll_back
from varlit.callbacks.spikes import SpikeWatch
from varlit.callbacks.terminal import say
from varlit.errors import UserError
from varlit.training.guard import StepRecord
from varlit.training.stage import StageModule

LAG_STEPS = 1  # the device is done with a step when the next one has been asked of it
GUIDE = "docs/reliability.md#numbers"
SPIKE_CURE = (
    "If it does not come down by itself: go on with a lower --model.optim.lr or --model.optim."
    "grad_clip; see docs/reading-the-curves.md#a-loss-that-jumps"
)


class Guard(Callback):
    """Skip steps with NaN or Inf; after too many go back once, then stop and say what was seen.

    The module skips such a step by itself (`varlit.training.guard`). Here it is counted, told and
    written to `bad-step-*.pt`, which `varlit replay` looks into.
    """

    def __init__(
        self,
        enabled: bool = True,
        max_bad_steps: int = 5,
        window_steps: int = 100,
        roll_backs: int = 1,
        spike: float = 8.0,
    ) -> None:
        """Plan what to bear.

        Args:
            enabled: Whether to look at the numbers; without it NaN goes into the weights.
            max_bad_steps: Skipped steps among the last `window_steps` that are too many. A window,
                because a run that has diverged may have good steps between the bad ones, and one
                broken image is met once an epoch.
            window_steps: How many steps are looked back on.
            roll_backs: How often a run may go back to the weights of its last good checkpoint
                before it stops; 0 = it stops at once.
            spike: Warn of a loss this many deviations above the usual; 0 = never.
        """
        if not 1 <= max_bad_steps <= window_steps:
            raise UserError(
                "guard.max_bad_steps must lie in 1..guard.window_steps; got "
                f"{max_bad_steps} of {window_steps}"
            )
        if roll_backs < 0 or spike < 0:
            raise UserError(
                "guard.roll_backs and guard.spike must not be negative (0 = off); got "
                f"{roll_backs} and {spike}"
            )
        self.enabled, self.max_bad_steps, self.window_steps = enabled, max_bad_steps, window_steps
        self.roll_backs, self.spike = roll_backs, spike
        self.num_skipped, self.num_roll_backs = 0, 0
        self.bad_steps: list[int] = []
        self._seen: list[BadStep] = []
        self._spikes = SpikeWatch(spike)
        self._parts: list[Part] = []
        self._pending: deque[tuple[StepRecord, list[Part]]] = deque()
        self._last_step = -1
        self._run: tuple[Trainer, StageModule] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What was counted, the step that was just taken included."""
        self._look(lag_steps=0)
        return {
            "num_skipped": self.num_skipped,
            "num_roll_backs": self.num_roll_backs,
            "bad_steps": list(self.bad_steps),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.num_skipped = state_dict["num_skipped"]
        self.num_roll_backs = state_dict["num_roll_backs"]
        self.bad_steps = list(state_dict["bad_steps"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the module whether to look."""
        assert isinstance(pl_module, StageModule)
        pl_module.guard.is_on = self.enabled
        pl_module.guard.records.clear()
        self._run = (trainer, pl_module) if self.enabled else None
        self._last_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the running step is given, until it is known that it was a good one."""
        if self.enabled:
            assert isinstance(pl_module, StageModule)
            self._parts.append(note_part(trainer, pl_module, batch, batch_idx))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Read what the device found in the step before, and go back or stop where it must be.

        Raises:
            UserError: If the numbers break again and again; with the cure.
        """
        step = trainer.global_step
        if not self.enabled or step == self._last_step:
            return
        self._last_step = step
        self._look(LAG_STEPS)
        if self.num_skipped:
            pl_module.log("optim/skipped_steps", float(self.num_skipped))
        self.bad_steps = [bad for bad in self.bad_steps if bad > step - self.window_steps]
        if len(self.bad_steps) >= self.max_bad_steps:
            assert isinstance(pl_module, StageModule)
            self._recover(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last step too."""
        self._look(lag_steps=0)
        self._run = None

    def _look(self, lag_steps: int) -> None:
        """Read the steps that are older than the last few; all processes do so alike."""
        if self._run is None:
            return
        trainer, pl_module = self._run
        while pl_module.guard.records:
            self._pending.append((pl_module.guard.records.popleft(), self._parts))
            self._parts = []
        while len(self._pending) > lag_steps:
            self._look_at(trainer, pl_module, *self._pending.popleft())

    def _look_at(
        self, trainer: Trainer, pl_module: StageModule, record: StepRecord, parts: list[Part]
    ) -> None:
        reading = record.read()
        if not reading.was_skipped:
            told = self._spikes.add(record.step, reading.loss)
            if told and trainer.is_global_zero:
                say(f"{told}. {SPIKE_CURE}")
            return
        self.num_skipped += 1
        self.bad_steps.append(record.step)
        bad = keep_evidence(trainer, pl_module, record, reading, parts)
        self._seen = [*self._seen, bad][-self.max_bad_steps :]
        if reading.is_own or trainer.is_global_zero:
            who = f"process {trainer.global_rank}: " if trainer.world_size > 1 else ""
            say(f"{who}step {bad.step:,} skipped: {bad.describe()}; look: varlit replay {bad.file}")

    def _recover(self, trainer: Trainer, pl_module: StageModule) -> None:
        """Go back to the last good weights, or stop.

        Raises:
            UserError: If the run has been there before, or has no good checkpoint.
        """
        self._look(lag_steps=0)
        found = None
        if trainer.is_global_zero:
            found = last_good(checkpoint_folder(trainer), min(self.bad_steps))
        path = trainer.strategy.broadcast(found)
        count = f"{len(self.bad_steps)} of the last {self.window_steps} steps had NaN or Inf"
        if path is None or self.num_roll_backs >= self.roll_backs:
            raise UserError(self._farewell(trainer, pl_module, count, path))
        step = roll_back(trainer, pl_module, path)
        self.num_roll_backs += 1
        self.bad_steps.clear()
        self._spikes.forget()
        if trainer.is_global_zero:
            say(
                f"{count}: back to the weights of step {step:,} ({path}), on with the images after "
                f"step {trainer.global_step:,}"
            )

    def _farewell(
        self, trainer: Trainer, pl_module: StageModule, count: str, path: Path | None
    ) -> str:
        """Why the run stops, and what to do, in two lines."""
        before = "and going back did not help" if self.num_roll_backs else ""
        if not before:
            before = "and there is no good checkpoint" if path is None else "and it may not go back"
        terms = list(dict.fromkeys(name for bad in self._seen for name in bad.terms))
        seen = f"; seen in {some(terms or ['gradients only'], 3)}" if self._seen else ""
        group = trainer.optimizers[0].param_groups[0]
        rate = f"at a learning rate of {group['lr']:.3g}"
        told = f"stopped at step {trainer.global_step:,}: {count}, {before}{seen}, {rate}."
        resume = f", from --ckpt_path {path}" if path is not None else ""
        return f"{told}\nCure: {self._cure(trainer, pl_module)}{resume}; see {GUIDE}"

    def _cure(self, trainer: Trainer, pl_module: StageModule) -> str:
        ids = list(dict.fromkeys(str(number) for bad in self._seen for number in bad.broken_ids))
        if ids:
            return f"mend or remove the images that hold NaN or Inf, ids {some(ids, 8)}"
        lr = pl_module.optim_config.lr  # type: ignore[union-attr]
        half = "" if "32" in str(trainer.precision) else ", or --trainer.precision 32-true"
        return (
            f"the batches are sound, so it diverges: go on with --model.optim.lr {lr / 4:.3g} (now "  # type: ignore[operator]
            f"{lr:.3g}), or a longer --model.optim.warmup{half}"
        )
