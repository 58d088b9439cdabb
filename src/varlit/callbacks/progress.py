"""Progress on the terminal: how far, how good, how fast, how long still; cards at both ends."""

import math
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from varlit.callbacks.cards import end_card, start_card
from varlit.callbacks.clock import StepClock, duration
from varlit.callbacks.loops import LoopProgress
from varlit.callbacks.readings import (
    count_images,
    describe_figures,
    read_loss,
    validations_per_step,
)
from varlit.callbacks.terminal import Terminal

LOSS_AGE_S = 2.0  # reading a loss waits for the GPU: not more often than this for the live line


class Progress(Callback):
    """A line every so many steps, with a live line under it on a TTY.

    Lines look like `step   500/1,400   36 %  loss 0.0213  412 img/s  1m02s left`. The time left
    counts recent steps and coming validations. Loops of validation, test and prediction tell
    their progress too. The first process speaks, the others are quiet.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Plan the lines.

        Args:
            every_n_steps: Print a line that stays every this many steps; 0 is silence.
        """
        self.every_n_steps = every_n_steps
        self._terminal = Terminal()
        self._clock = StepClock()
        self._loop: LoopProgress | None = None
        self._total_steps = math.inf
        self._images_per_step = 0
        self._seen_step = self._printed_step = self._first_step = -1
        self._started_s = self._pause_started_s = 0.0
        self._loss: float | None = None
        self._loss_read_s = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the start card and start the clock."""
        if not self._speaks(trainer):
            return
        self._clock = StepClock()
        self._total_steps = trainer.estimated_stepping_batches
        self._seen_step = self._first_step = trainer.global_step
        self._started_s = time.monotonic()
        self._clock.tick(self._started_s)
        self._terminal.say(start_card(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the step, if this batch ended one."""
        step = trainer.global_step
        if not self._speaks(trainer) or step == self._seen_step:
            return
        self._seen_step = step
        self._clock.tick(time.monotonic())
        if not self._images_per_step:
            share = trainer.world_size * trainer.accumulate_grad_batches
            self._images_per_step = count_images(batch) * share
        first = step == self._first_step + 1
        if first or step % self.every_n_steps == 0 or step >= self._total_steps:
            self._loss = read_loss(trainer.callback_metrics, outputs)
            self._terminal.say(self._line(trainer))
            self._printed_step = step
        elif self._terminal.live_is_due():
            if time.monotonic() - self._loss_read_s > LOSS_AGE_S:
                self._loss = read_loss(trainer.callback_metrics, outputs)
                self._loss_read_s = time.monotonic()
            self._terminal.live(self._line(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line and the end card."""
        if not self._speaks(trainer):
            return
        if self._seen_step not in (self._printed_step, self._first_step):
            self._terminal.say(self._line(trainer))
        elapsed_s = time.monotonic() - self._started_s
        self._terminal.say(end_card(trainer, pl_module, elapsed_s, self._images_per_s()))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to tell a validation, which pauses the training's clock."""
        if self._speaks(trainer) and not trainer.sanity_checking:
            self._pause_started_s = time.monotonic()
            self._loop = LoopProgress("validation", trainer.num_val_batches, self._terminal)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Tell a batch of a validation."""
        self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the figures of a validation."""
        if self._loop is None:
            return
        self._loop = None
        if trainer.state.fn == TrainerFn.FITTING:
            self._clock.pause(time.monotonic() - self._pause_started_s)
        figures = describe_figures(trainer.callback_metrics)
        at = f" at step {trainer.global_step:,}" if trainer.state.fn == TrainerFn.FITTING else ""
        self._terminal.say(f"validation{at}  {figures}".rstrip())

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to tell a test."""
        if self._speaks(trainer):
            self._loop = LoopProgress("test", trainer.num_test_batches, self._terminal)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Tell a batch of a test."""
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how long the test took."""
        self._finish()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to tell a prediction."""
        if self._speaks(trainer):
            self._loop = LoopProgress("predict", trainer.num_predict_batches, self._terminal)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Tell a batch of a prediction; of several crops of an image it counts the image."""
        if self._loop is not None:
            crops = batch.get("crop") if isinstance(batch, Mapping) else None
            num_crops = 1 if crops is None else max(1, crops.unique().numel())
            self._loop.advance(count_images(batch) // num_crops * trainer.world_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how long the prediction took."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal with a clean last line."""
        if self._speaks(trainer):
            self._terminal.say()

    def _speaks(self, trainer: Trainer) -> bool:
        return self.every_n_steps > 0 and trainer.is_global_zero

    def _advance(self) -> None:
        if self._loop is not None:
            self._loop.advance()

    def _finish(self) -> None:
        if self._loop is not None:
            self._loop.finish()
            self._loop = None

    def _images_per_s(self) -> float | None:
        step_s = self._clock.step_s
        return self._images_per_step / step_s if step_s else None

    def _line(self, trainer: Trainer) -> str:
        share, left_s = self._outlook(trainer)
        words = [f"step {trainer.global_step:,}"]
        if math.isfinite(self._total_steps):
            width = len(f"{int(self._total_steps):,}")
            words = [f"step {trainer.global_step:>{width},}/{int(self._total_steps):,}"]
        if share is not None:
            words.append(f"{100 * min(share, 1.0):3.0f} %")
        if self._loss is not None:
            words.append(f"loss {self._loss:<7.4g}")
        speed = self._images_per_s()
        if speed is not None:
            words.append(f"{speed:>5,.{0 if speed >= 10 else 1}f} img/s")
        if left_s is not None and trainer.global_step < self._total_steps:
            words.append(f"{duration(left_s)} left")
        return "  ".join(words).rstrip()

    def _outlook(self, trainer: Trainer) -> tuple[float | None, float | None]:
        """Share that is done and time that is left, by steps or by a time limit."""
        outlooks: list[tuple[float, float | None]] = []
        if math.isfinite(self._total_steps):
            steps = max(0.0, self._total_steps - trainer.global_step)
            left_s = self._clock.left_s(steps, steps * validations_per_step(trainer))
            outlooks.append((trainer.global_step / max(1, self._total_steps), left_s))
        for timer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(timer, Timer):
                left_s = timer.time_remaining(RunningStage.TRAINING)
                if left_s is not None:
                    done_s = timer.time_elapsed(RunningStage.TRAINING)
                    left_s = max(0.0, left_s)
                    outlooks.append((done_s / max(done_s + left_s, 1e-9), left_s))
        if not outlooks:
            return None, None
        shares, times = zip(*outlooks, strict=True)
        known = [time_s for time_s in times if time_s is not None]
        return max(shares), min(known, default=None)
