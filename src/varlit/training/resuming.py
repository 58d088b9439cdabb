"""What a resumed run owes: the scalars and the validation that its checkpoint came before.

Lightning lets a checkpoint be saved before the scalars of that step are written and before it
validates, and a run that goes on from there does neither. And at the end of an epoch it counts that
epoch as done but not the next as begun, so that a second resume trains steps twice.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

KEY = "resuming"
"""Where checkpoints keep what is owed."""


def note(trainer: Trainer) -> dict[str, Any]:
    """What a run that goes on from this moment has to make up for, as plain data.

    Returns:
        `is_open`, whether an epoch is under way or has not been closed; if so also `scalars` of
        this step that are not written yet, whether a validation is `due` and not at its end, how
        many batches of this epoch were `validated` before it, and whether all batches of the epoch
        are done (`at_end`).
    """
    fit = trainer.fit_loop
    epochs: Any = fit.epoch_progress.current
    batches: Any = fit.epoch_loop.batch_progress
    if epochs.processed == epochs.ready:
        return {"is_open": False}
    connector = trainer._logger_connector
    scalars: dict[str, float] = {}
    seen = fit.epoch_loop.val_loop.batch_progress
    is_amid_step = not trainer.validating and batches.total.completed < batches.total.processed
    if is_amid_step and connector.should_update_logs:
        scalars = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {
        "is_open": True,
        "scalars": scalars,
        # A validation counts when all who listen to its end have heard of it: hence not before.
        "due": bool(fit.epoch_loop._should_check_val_fx(fit._data_fetcher)),  # type: ignore[arg-type]
        "validated": seen.total.ready - (seen.current.ready if trainer.validating else 0),
        "at_end": batches.is_last_batch,
    }


def let_it_end(trainer: Trainer, owed: dict[str, Any]) -> None:
    """See to it that a run without a step left to take is ended; Lightning would skip it whole.

    Its last validation, last pictures and last checkpoint may be missing. `max_steps` is out of
    sight until Lightning has looked at it, and back before anybody else does.
    """
    if not owed["is_open"]:
        return
    fit = trainer.fit_loop
    max_steps, fit.epoch_loop.max_steps = fit.max_steps, -1

    def start() -> None:
        del vars(fit)["on_run_start"]
        fit.epoch_loop.max_steps = max_steps
        fit.on_run_start()

    vars(fit)["on_run_start"] = start


def catch_up(trainer: Trainer, owed: dict[str, Any]) -> None:
    """Do what is owed, before the first step; every process must call it."""
    if not owed["is_open"]:
        return
    trainer._logger_connector.log_metrics(owed["scalars"])
    is_over = owed["at_end"] or 0 <= trainer.max_steps <= trainer.global_step
    if is_over:
        _end_batch(trainer.fit_loop)
    if owed["due"]:
        _validate(trainer, owed["validated"])
    if is_over:
        _close_epoch(trainer.fit_loop)


def _validate(trainer: Trainer, num_before: int) -> None:
    """Validate as Lightning's epoch does; one that was cut short does not count."""
    validation, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    validation.restarting = False
    count: Any = validation.batch_progress.total
    count.ready = count.started = count.processed = count.completed = num_before
    first_loop_iter = connector._first_loop_iter
    trainer.validating = True
    validation.run()
    trainer.training = True
    connector._first_loop_iter = first_loop_iter


def _end_batch(fit: _FitLoop) -> None:
    """Count as an undisturbed run does between its last batch and its validation."""
    epochs: Any
    batches: Any
    for epochs in (fit.epoch_progress.total, fit.epoch_progress.current):
        epochs.processed = epochs.completed = epochs.ready - 1
    for batches in (fit.epoch_loop.batch_progress.total, fit.epoch_loop.batch_progress.current):
        batches.completed = batches.processed


def _close_epoch(fit: _FitLoop) -> None:
    """Count as an undisturbed run does between two epochs: nothing is under way."""
    epochs: Any
    for epochs in (fit.epoch_progress.total, fit.epoch_progress.current):
        epochs.processed = epochs.completed = epochs.ready
    fit.epoch_loop._batches_that_stepped += 1
    fit._restarting = False  # its setter would not, in a run whose length is in steps
    fit.epoch_loop.restarting = False
    fit.reset_restart_stage()
    fit.epoch_loop.reset_restart_stage()
