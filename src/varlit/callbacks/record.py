"""What a run leaves behind for later: its environment, its numbers, changes of its config."""

import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from varlit.callbacks.terminal import say
from varlit.disks import append_line, may_be_lost, whole_file

PICTURES = "pictures"
ENVIRONMENT = "environment.txt"
METRICS = "metrics.jsonl"
CONFIG = "fit.yaml"
SHOWN_CHANGES = 3
PACKAGES = ("varlit", "torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow")


def run_dir(trainer: Trainer) -> Path:
    """The folder of a run, `runs/<name>`: the logger's, or the trainer's root without a logger.

    Unlike `trainer.log_dir` it asks no other process, so one process alone may call it.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, MetricsFile) and logger.log_dir:
            return Path(logger.log_dir)
    return Path(trainer.default_root_dir)


class MetricsFile(Logger):
    """Appends everything that is logged to metrics.jsonl, one JSON object a line.

    Steps are optimizer steps. After a resume the steps since the checkpoint appear twice: take
    the later line.
    """

    def __init__(self, path: Path, trainer: Trainer) -> None:
        super().__init__()
        self.path = path
        self._trainer = trainer

    @property
    def name(self) -> str:
        """Name of this logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """One file a run: there are no versions."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Hyper-parameters are in the saved config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line; numbers that JSON does not know (nan, inf) become null."""
        told: dict[str, Any] = {"step": self._trainer.global_step}
        for tag, value in metrics.items():
            told[tag] = value if math.isfinite(value) else None
        with may_be_lost("lines of numbers", self.path):
            append_line(self.path, json.dumps(told) + "\n")


class RunRecord(Callback):
    """Write environment.txt and metrics.jsonl to the run's folder; on a resume show what changed.

    Each checkpoint holds the config it was trained with, as the text of the `fit.yaml` that the
    command line saves in the folder: that file itself is of the last start, which may have failed
    before its first step. For checkpoints without it the file has to do.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Plan the records.

        Args:
            enabled: Whether to keep them.
        """
        self.enabled = enabled
        self._config_before: dict[str, Any] = {}
        self._config_text = ""

    def state_dict(self) -> dict[str, Any]:
        """Today's config, for the checkpoint."""
        return {"config": self._config_text}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the config of the checkpoint for what was before."""
        if state_dict.get("config"):
            self._config_before = flatten(yaml.safe_load(state_dict["config"]))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach metrics.jsonl, and read the last start's config before it is overwritten."""
        if not self.enabled:
            return
        if trainer.loggers and not any(isinstance(own, MetricsFile) for own in trainer.loggers):
            metrics = MetricsFile(run_dir(trainer) / METRICS, trainer)
            trainer.loggers = [*trainer.loggers, metrics]
        if stage == "fit" and trainer.is_global_zero:
            self._config_before = read_config(run_dir(trainer) / CONFIG)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down the environment; on a resume print what changed in the config."""
        if not self.enabled or not trainer.is_global_zero:
            return
        path = run_dir(trainer) / ENVIRONMENT
        with may_be_lost("notes on the environment", path):
            append_text(path, describe_environment(trainer.global_step))
        config = read_config(run_dir(trainer) / CONFIG)
        if not config:
            return
        self._config_text = (run_dir(trainer) / CONFIG).read_text(encoding="utf-8")
        if trainer.global_step and self._config_before:
            changes = config_changes(self._config_before, config)
            if changes:
                say("\n".join(["config changed since this checkpoint was written:", *changes]))


def describe_environment(step: int = 0) -> str:
    """Versions, commit, device and command line of this process, as text."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    facts = {
        "started": f"{now} at step {step:,}",
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "commit": git_commit(Path(__file__).parent) or "unknown",
        "machine": f"{platform.node()}, {platform.platform()}, {os.cpu_count()} cores, {device}",
        "python": platform.python_version(),
        **{name: installed_version(name) for name in PACKAGES},
        "cuda": str(torch.version.cuda),
    }
    width = max(len(name) for name in facts)
    return "".join(f"{name:<{width}}  {text}\n" for name, text in facts.items())


def installed_version(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_commit(folder: Path) -> str:
    """Commit of the working tree that a folder belongs to, "" outside of one.

    A folder of installed packages says nothing: it may lie inside somebody else's tree.
    """
    if "site-packages" in folder.parts:
        return ""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        edited = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit} with uncommitted changes" if edited else commit


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def append_text(path: Path, text: str) -> None:
    """Add a paragraph to a text file; the file is replaced at once."""
    before = path.read_text(encoding="utf-8") + "\n" if path.exists() else ""
    with whole_file(path) as unfinished:
        unfinished.write_text(before + text, encoding="utf-8")


def read_config(path: Path) -> dict[str, Any]:
    """A YAML config as flat keys, {"model.optim.lr": 0.0001}; nothing if there is no file."""
    if not path.exists():
        return {}
    return flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def config_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Lines `key  old -> new` of two flat configs, at most three and a count of the rest."""
    absent = "(not set)"
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    width = max((len(key) for key in keys[:SHOWN_CHANGES]), default=0)
    shown = [
        f"  {key:<{width}}  {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys[:SHOWN_CHANGES]
    ]
    hidden = len(keys) - len(shown)
    return [*shown, f"  and {hidden} more; see {CONFIG}"] if hidden else shown
