"""`StageCLI`: LightningCLI as both stages use it, with the cures for its known traps.

Base files first, then the config of the run (for verbs other than fit), the user's `-c`, flags
last. Named callbacks instead of a list; `fit` resumes; `<verb>.yaml` is kept in the run's folder.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from varlit.callbacks.curves import Curves
from varlit.cli.config.kept import KeptConfig
from varlit.cli.config.parser import Parser, prefer_integers, require_values
from varlit.cli.config.recipes import base_chain, expand, option_value, split_configs
from varlit.cli.config.trust import require_trusted, restrict_parsing, split_imports
from varlit.cli.results import report
from varlit.cli.running import resume
from varlit.cli.running.checkpoint import check_strategy
from varlit.cli.running.devices import check_training, place, wants_ddp
from varlit.cli.running.lock import RunLock
from varlit.cli.running.memory_advice import advice, exhausted
from varlit.cli.running.processes import SharedFate
from varlit.cli.running.quiet import quieten
from varlit.cli.verbs import typed
from varlit.errors import UserError
from varlit.models.config import PlainConfig
from varlit.training.checkpoint_files import read_checkpoint

# The configs are closed groups of settings: no class_path in files, their keys in --help.
set_parsing_settings(docstring_parse_attribute_docstrings=True, subclasses_disabled=[PlainConfig])


@dataclass(frozen=True)
class Stage:
    """What makes one stage: its module, its data, what watches it and what is linked."""

    name: str
    model: type[LightningModule]
    data: type[LightningDataModule]
    callbacks: Mapping[str, type[Callback]]
    links: Mapping[str, str]
    any_data: bool = False
    """Whether `--data` may name any LightningDataModule; `data` is then only the first choice."""
    next_commands: Mapping[str, str] = field(default_factory=dict)
    """What to type after a verb, with {name}, {run_dir} and {root} (a flag, where needed)."""
    turned_off: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For a verb, settings of parts that it has no use for, so that it needs no files of theirs."""


class StageCLI(LightningCLI):
    """One verb of one stage."""

    def __init__(self, stage: Stage, subcommand: str, args: list[str]) -> None:
        """Parse, build and run.

        Args:
            stage: The stage.
            subcommand: `fit`, `validate`, `test` or `predict`.
            args: What follows the subcommand.
        """
        quieten()
        args, packages = split_imports(args)
        restrict_parsing(packages)
        self.stage, self.asked, self.typed = stage, subcommand, args
        kwargs = {"parser_mode": "omegaconf", "allow_abbrev": False}
        super().__init__(
            stage.model,
            LightningDataModule if stage.any_data else stage.data,
            args=[subcommand, *self._words()],
            parser_class=Parser,
            parser_kwargs={"prog": f"varlit {stage.name}", **kwargs, subcommand: dict(kwargs)},
            save_config_callback=KeptConfig,
            subclass_mode_data=stage.any_data,
            auto_configure_optimizers=False,
            save_config_kwargs={"config_filename": f"{subcommand}.yaml", "overwrite": True},
            # The modules save plain dictionaries themselves, so that checkpoints need no CLI.
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Build the parser of the verb that was asked for only; each costs half a second."""
        return {self.asked: LightningCLI.subcommands()[self.asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's place, its devices, the named callbacks and the links."""
        add = parser.add_argument
        add("--name", type=str, default="", help="The run; it writes to <root>/<name> only.")
        add("--root", type=str, default="runs", help="Where runs live.")
        add("--gpus", type=str, default="auto", help="`auto` or a number of GPUs; 0 = the CPU.")
        add("--dry_run", action="store_true", help="Show the plan and touch nothing.")
        for name, callback in self.stage.callbacks.items():
            parser.add_lightning_class_args(callback, name)
        for source, target in self.stage.links.items():
            parser.link_arguments(source, target, apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        prefer_integers(parser)
        if subcommand in {"test", "validate"}:
            parser.set_defaults({"verbose": False})  # the table at the end says the same
        elif subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # the cache is on disk
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the expanded words; Lightning's version warns about args from Python."""
        require_values(args)
        self.config = parser.parse_args(args)
        self.settings = self.config[self.asked]
        require_trusted(self.settings.as_dict(), split_configs(self.typed)[1])
        self.run_dir = Path(self.settings.root) / self.settings.name

    def _parse_ckpt_path(self) -> None:
        """Flags win over the checkpoint: Lightning's version silently does the opposite."""

    def before_instantiate_classes(self) -> None:
        """Decide on devices; stop here on a dry run."""
        explicit = option_value(self.typed, "--trainer.precision") is not None
        trainer = self.settings.trainer.as_dict()
        if self.asked == "fit":
            check_training(self.stage.name, trainer)
        for key, value in self.stage.turned_off.get(self.asked, {}).items():
            self.settings[key] = value
        self.placement = place(self.settings.gpus, trainer, explicit)
        self.lock = RunLock(self.run_dir)
        if self.run_dir.is_dir() and not self.settings.dry_run:
            self._take_lock()  # before minutes are spent on the rest
        self.checkpoint_path = self._find_checkpoint()
        if self.settings.dry_run:
            files = [*base_chain(self.stage.name), *self._recipes()]
            plan = report.Plan(self.stage.name, self.asked, self.run_dir, files, self.placement)
            report.print_plan(plan, self.settings.as_dict(), self.checkpoint_path)
            raise SystemExit(0)
        if self.placement.remark:
            rank_zero_only(print)(f"varlit: {self.placement.remark}", flush=True)

    def _words(self) -> list[str]:
        # As a default of the parser, the class would hand its own defaults on to another class.
        first_choice = self.stage.data.__name__ if self.stage.any_data else ""
        return expand(self.stage.name, self.asked, self.typed, first_choice)

    def _recipes(self) -> list[Path]:
        words = self._words()
        return [Path(b) for a, b in pairwise(words) if a == "-c"][2:]

    def _find_checkpoint(self) -> Path | None:
        """Resolve `ckpt_path`; None is a fresh start."""
        command = f"varlit {self.stage.name} fit --name {self.settings.name}"
        given, is_fit = self.settings.ckpt_path, self.asked == "fit"
        self.newest = resume.find(given, self.run_dir, command, may_be_new=is_fit)
        return self.newest.path

    def _take_lock(self) -> None:
        """Refuse a second training in the folder; the first process holds the lock for all."""
        if self.asked == "fit":
            rank_zero_only(self.lock.take)()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer; devices and the logger are decided here, so they are not saved."""
        trainer = self.settings.trainer
        kwargs |= {
            "accelerator": self.placement.accelerator,
            "devices": self.placement.devices,
            "precision": self.placement.precision,
            "default_root_dir": str(self.run_dir),
        }
        if self.asked != "fit":
            kwargs["logger"] = False  # measures go to metrics.json, not into the curves of the run
        elif trainer.logger is None or trainer.logger is True:
            place = self.settings.root, self.settings.name
            kwargs["logger"] = Curves(*place, version="", default_hp_metric=False)
        if wants_ddp(trainer.strategy, self.placement.devices, int(trainer.num_nodes)):
            # Gradients live in the buckets that are summed: one copy of them less.
            kwargs["strategy"] = DDPStrategy(gradient_as_bucket_view=True)
        if SLURMEnvironment.detect() and trainer.plugins is None:
            # Its own requeueing saves amid a step, and to a file that resuming does not look at.
            kwargs["plugins"] = [SLURMEnvironment(auto_requeue=False)]
        checkpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = checkpoint.dirpath or str((self.run_dir / "checkpoints").resolve())
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Build everything; jsonargparse wraps what our constructors say, here it is unwrapped.

        Raises:
            UserError: If a constructor did.
        """
        try:
            super().instantiate_classes()
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise cause from None

    def after_instantiate_classes(self) -> None:
        """Tell the module what its user may type next."""
        root = "" if self.settings.root == "runs" else f" --root {self.settings.root}"
        command = self.stage.next_commands.get(self.asked, "")
        self.model.next_command = typed(
            command.format(name=self.settings.name, run_dir=self.run_dir, root=root)
        )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        path = str(self.checkpoint_path) if self.checkpoint_path else None
        # Whatever a config says: to read a checkpoint otherwise is to run what is in it.
        safe = {"ckpt_path": path, "weights_only": True}
        return super()._prepare_subcommand_kwargs(subcommand) | safe

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; a training is alone in its folder."""
        self._claim_folder()
        self._take_lock()
        try:
            with SharedFate.of(self.trainer, self.run_dir):
                self._run_alone(subcommand)
        finally:
            self.lock.release()

    def _run_alone(self, subcommand: str) -> None:
        """Run, and put torch's longest messages into the user's words."""
        if self.checkpoint_path:
            # Before <verb>.yaml is written: a refused start must leave the run as it was.
            content = read_checkpoint(self.checkpoint_path)
            check_strategy(self.trainer.strategy, content, self.checkpoint_path)
            self.model.on_load_checkpoint(content)
            if subcommand == "fit":
                resume.put_aside(self.newest.damaged)
        try:
            super()._run_subcommand(subcommand)
        except (RuntimeError, MemoryError) as error:
            if exhausted(error):
                raise UserError(advice(subcommand, error, self.trainer, self.datamodule)) from error
            if "loading state_dict" not in str(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{self.checkpoint_path} is of another architecture: {lines[-1][:200]} Give the "
                "settings it was trained with, or another --name"
            ) from error

    def _claim_folder(self) -> None:
        """Make the run's folder, or fail before any work is done."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"cannot make the folder {self.run_dir}: {reason}; write elsewhere with --root"
            ) from error
        if not os.access(self.run_dir, os.W_OK):
            raise UserError(f"{self.run_dir} cannot be written to; mend its rights or use --root")

    def after_test(self) -> None:
        """Print the measures as a table and keep them in the run's folder."""
        measures = self._measures()
        if self.trainer.is_global_zero:
            protocol = getattr(self.model, "test_protocol", {})
            published = getattr(self.model, "published", {})
            choice = report.told_choice(protocol.get("sampling", {}).get("keep", 1.0))
            quick = report.told_quick(protocol)
            title = f"{self.stage.name} test: {self.settings.name}{choice}{quick}"
            report.print_table(title, measures, published, getattr(self.model, "titles", {}))
            report.print_protocol(protocol)
            path = self.run_dir / "metrics.json"
            report.write_metrics(path, measures, self.checkpoint_path, protocol)

    def after_predict(self) -> None:
        """Say what comes next."""
        if self.trainer.is_global_zero:
            print(f"next: {self.model.next_command}")

    def after_validate(self) -> None:
        """Print the measures as a table."""
        measures = self._measures()
        if self.trainer.is_global_zero:
            report.print_table(f"{self.stage.name} validate: {self.settings.name}", measures)

    def _measures(self) -> dict[str, float]:
        """What was measured; Lightning skips a loop without data and says nothing."""
        measures = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
        if not measures:
            remedy = "write the token cache again from images that have one"
            if self.stage.any_data:
                remedy = "set data.val_fraction, or make a val/ folder beside train/"
            raise UserError(f"nothing was measured: the data have no held-out part; {remedy}")
        return measures
