"""Ctrl-C and SIGTERM lose nothing: finish the step, save, say how to go on, stop.

Lightning on its own drops everything since the last checkpoint on Ctrl-C, and in a distributed
run leaves its processes at different steps; here they agree on the step before any of them saves.
"""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from varlit.callbacks.record import run_dir
from varlit.callbacks.terminal import say

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAVE_SIGNAL = getattr(signal, "SIGUSR1", None)  # there is none on Windows
FAREWELLS = {
    "predict": "stopped; finished shards are kept, run the same command again to go on",
    "test": "stopped; nothing was changed",
    "validate": "stopped; nothing was changed",
}
"""What Ctrl-C and SIGTERM say outside of training, by stage."""


class SaveOnInterrupt(Callback):
    """On SIGINT or SIGTERM save checkpoints/last.ckpt after the running step, then stop.

    The process ends with exit code 130 (SIGINT) or 143 (SIGTERM), and `signal_number` is set. A
    second signal stops at once without saving. SIGUSR1 saves and goes on. A validation is cut
    short; the modules of both stages make up for it on a resume. Outside of training both stop at
    once, with one line. Put this callback last, so that the others have seen the step.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Plan for signals.

        Args:
            enabled: Whether to handle them.
        """
        self.enabled = enabled
        self.signal_number = 0
        self._wants_save = False
        self._is_training = False
        self._farewell = ""
        self._seen_step = -1
        self._process_id = os.getpid()
        self._trainer: Trainer | None = None
        self._previous: dict[int, Any] = {}
        self._group: Any = None  # torch.distributed's ProcessGroup

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signals over before loader workers are forked, so that they outlive Ctrl-C."""
        if not self.enabled:
            return
        self._trainer = trainer
        self.signal_number, self._wants_save = 0, False
        if stage != "fit":
            # SIGTERM too: of that Lightning takes no note in a prediction, and ends a test with 0.
            self._farewell = FAREWELLS[stage]
        self._take_over(*STOP_SIGNALS)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over again what Lightning has wrapped meanwhile; from now on signals save."""
        if not self.enabled:
            return
        self._take_over(*STOP_SIGNALS)
        # On a SLURM cluster Lightning uses SIGUSR1 to queue the job again.
        if SAVE_SIGNAL and signal.getsignal(SAVE_SIGNAL) in (signal.SIG_DFL, None):
            self._take_over(SAVE_SIGNAL)
        if trainer.world_size > 1 and dist.is_initialized():
            # On the CPU, so that asking every step never waits for a GPU.
            self._group = dist.new_group(backend="gloo")
        self._seen_step = trainer.global_step
        self._is_training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if a signal has come and this batch ended an optimizer step."""
        if self._is_training and trainer.global_step != self._seen_step:
            self._seen_step = trainer.global_step
            self._obey(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Cut a validation short; all processes have the same number of batches."""
        if self._in_validation(trainer):
            self._obey(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop after a validation, if a signal has come during it."""
        if self._in_validation(trainer):
            self._obey(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to save: signals are somebody else's again."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back, and say what became of a run that was no training."""
        if self._farewell and self.signal_number:
            say_first(trainer, self._farewell)
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGKILL)  # they may not have been told
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back; Lightning may have put ours in place again."""
        self._release()

    def _in_validation(self, trainer: Trainer) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING
        return self._is_training and fitting and not trainer.sanity_checking

    def _obey(self, trainer: Trainer) -> None:
        number, wants_save = self._agreed()
        if not wants_save and not number:
            return
        self._wants_save = False
        path = save_last(trainer)
        if not number:
            say_first(trainer, f"saved {path} at step {trainer.global_step:,}; going on")
            return
        say_first(
            trainer,
            f"saved {path} at step {trainer.global_step:,}; run the same command again to go on",
        )
        self.signal_number = number
        raise SystemExit(self._exit_code())

    def _exit_code(self) -> int:
        # Processes that Lightning has started must end well, or it kills the first one.
        is_first = self._trainer is None or self._trainer.is_global_zero
        return 128 + self.signal_number if is_first else 0

    def _agreed(self) -> list[int]:
        """What any process was told, signal and save, so that all act at the same step.

        What comes while they ask each other stays noted for the next step.
        """
        told = torch.tensor([self.signal_number, int(self._wants_save)])
        if self._group is not None:
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
        numbers: list[int] = told.tolist()
        return numbers

    def _take_over(self, *numbers: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            if signal.getsignal(number) != self._handle:
                self._previous.setdefault(number, signal.getsignal(number))
                signal.signal(number, self._handle)

    def _release(self) -> None:
        self._is_training, self._farewell = False, ""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. Runs between any two instructions, so it does as little as possible."""
        if os.getpid() != self._process_id:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # a loader's worker: its parent decides
        if self._farewell and number in STOP_SIGNALS:
            # Not a KeyboardInterrupt, of which Lightning makes exit code 1.
            self.signal_number = number
            raise SystemExit(self._exit_code())
        if not self._is_training:
            self._pass_on(number, frame)
        elif number == SAVE_SIGNAL:
            self._wants_save = True
        elif not self.signal_number:
            self.signal_number = number
            self._whisper("\nfinishing the step, then saving; the same again stops at once\n")
        else:
            self._whisper("\nstopped at once; the last checkpoint is as it was\n")
            launcher = self._trainer.strategy.launcher if self._trainer else None
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            raise SystemExit(128 + number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number, signal.SIG_DFL)
        if callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _whisper(self, text: str) -> None:
        # Not print: a signal may interrupt a print, and a stream's lock is not re-entrant.
        if self._trainer is not None and self._trainer.is_global_zero:
            os.write(2, text.encode())


def save_last(trainer: Trainer) -> Path:
    """Save the whole state where `ckpt_path: last` looks for it; every process must call it."""
    path = run_dir(trainer) / "checkpoints" / "last.ckpt"
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            name = callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION
            path = Path(callback.dirpath) / name
            # Known as its own, or it would put a last-v1.ckpt beside it after the resume.
            callback.last_model_path = str(path)
            break
    trainer.save_checkpoint(path)
    return path


def say_first(trainer: Trainer, text: str) -> None:
    """Print in the first process."""
    if trainer.is_global_zero:
        say(text)
