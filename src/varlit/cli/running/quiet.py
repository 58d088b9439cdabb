"""What Lightning and torch say that the user can neither act on nor learn from.

Each filter states why. Anything not listed here still reaches the terminal, once.
"""

import logging
import warnings

# Log lines, by a piece of their text.
LOG_FILTERS = {
    "Tip: For seamless": "an advertisement",
    "GPU available:": "varlit says in one line what it runs on",
    "TPU available:": "varlit does not use TPUs",
    "LOCAL_RANK:": "the start card names the devices",
    "Initializing distributed:": "the start card names the devices",
    "distributed_backend=": "the start card names the devices",
    "Starting with ": "the start card names the devices",
    "All distributed processes registered": "the start card names the devices",
    "Seed set to": "the seed is in the saved config",
    "Using bfloat16 Automatic Mixed Precision": "the precision is in the saved config",
    "`Trainer.fit` stopped: `max_": "the end card says it",
    "`Trainer(limit_": "the user asked for it",
    "`Trainer(overfit_batches": "the user asked for it",
    "`Trainer(val_check_interval": "the user asked for it",
    "Loading `train_dataloader` to estimate": "an inner step of the schedule",
    "You are using a CUDA device": "autocast does the heavy products; token search must stay fp32",
    "`weights_only` was not set": "conf/base.yaml sets it",
    "Restoring states from": "the start card says from which step",
    "Restored all states from": "the start card says from which step",
    "Loaded model weights from": "metrics.json names the checkpoint",
    "You have turned on `Trainer(detect_anomaly": "the user asked for it",
    "Detected KeyboardInterrupt": "the interrupt callback says what was saved",
}

# Warnings, by the beginning of their text (a regular expression).
WARNING_FILTERS = {
    r".*does not have many workers": "token caches and the demo are faster without workers",
    r".*Consider setting `persistent_workers=True`": "the data modules decide on it",
    r"The number of training batches .* is smaller than the logging": "short epochs are fine",
    r"Checkpoint directory .* exists and is not empty": "that is how a run resumes",
    r"Using ModelCheckpoint with manual optimization": "weights after the step are what we want",
    r"Found \d+ module\(s\) in eval mode": "the perceptual net and the tokenizer are frozen",
    r"The dirpath has changed from": "runs may be moved",
    r"You're resuming from a checkpoint that ended before the epoch": "our loaders resume exactly",
    r"Couldn't infer the batch indices fetched": "the token writer goes by the batch's own ids",
    r"Total length of .* across ranks is zero": "everything was encoded before",
    r"Grad strides do not match": "a matter of 1x1 convolutions; results are the same",
    r"It is recommended to use `self.log\(.*sync_dist": "what is logged so is summed before",
    r"predict returned None": "the token writer keeps what is needed",
    r"The `srun` command is available": "runs on a cluster's login node too",
    r"GPU available but not used": "varlit says in one line what it runs on",
    r"LightningCLI's args parameter": "the dispatcher hands the words over on purpose",
    r".*isinstance\(treespec, LeafSpec\)": "between Lightning and torch",
    r".*Detected call of `lr_scheduler\.step\(\)` before": "Lightning's order under bf16",
    r"Due to class_path change": "`--data OtherModule` keeps what both know",
    r".*tensorboardX": "tensorboard is a dependency",
    r".*pkg_resources is deprecated": "of a dependency",
    r"The parameter 'pretrained' is deprecated": "of a dependency (lpips)",
    r"Arguments other than a weight enum": "of a dependency (lpips)",
    r".*'pin_memory' argument is set as true but no accelerator": "the data modules decide on it",
    r"Unable to import .* in-memory": "of a dependency",
}

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")


def quieten() -> None:
    """Install the filters once Lightning is imported; calling it again changes nothing."""
    for name in LOGGERS:
        # On the handlers, because a logger's own filters do not see its children's records.
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(f, _Filter) for f in handler.filters):
                handler.addFilter(_Filter())
    for message in WARNING_FILTERS:
        warnings.filterwarnings("ignore", message=message)
    format_warnings()


def format_warnings() -> None:
    """Print warnings for people, from any verb; imports nothing heavy."""
    warnings.formatwarning = _one_line


class _Filter(logging.Filter):
    """Drop the log lines listed above."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(piece in text for piece in LOG_FILTERS)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning for people: our own in one line, others with their place."""
    if issubclass(category, UserWarning):
        return f"varlit: warning: {message}\n"
    return f"varlit: warning: {message} ({filename}:{lineno})\n"
