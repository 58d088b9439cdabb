"""FID and inception score of a few thousand samples, every so often while a VAR learns."""

import time
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from varlit.callbacks.drawing import undisturbed
from varlit.callbacks.terminal import say
from varlit.metrics.ranks import OtherProcessError
from varlit.training.evaluation import Evaluation
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.var_evaluation import VARTest
from varlit.training.var_weights import VARWeights

TAG = "fid"


class QuickFID(Callback):
    """Draw samples with the averaged weights, on all devices, and compare them with a reference.

    The figures are those of few images, are called quick, and compare with each other alone: same
    seeds, same reference. An evaluation that fails costs a warning and not the training. Neither
    the network nor the reference is part of any checkpoint.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        num_images: int = 5000,
        reference: str = "data:val",
        network: str = "inception",
        weights: str = "",
        trust_torchscript: bool = False,
        cfg_scale: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        seed: int = 0,
        batch_size: int = 64,
        rounding: Literal["nearest", "down"] = "nearest",
    ) -> None:
        """Plan the evaluations.

        Args:
            every_n_steps: Evaluate every this many steps; 0 = never.
            num_images: Samples, classes evenly.
            reference: Real images: an .npz, a folder, or data:val, data:train for those behind
                the token cache. Computed once and kept.
            network: What looks at images: inception, mobilenet_v2, torchscript or a registered one.
            weights: Its file.
            trust_torchscript: Run the program in a TorchScript file.
            cfg_scale: Strength of guidance; 0 is none.
            top_k: Draw among the k likeliest codes; 0 is all.
            top_p: Draw among the likeliest codes that hold this probability; 0 is all.
            seed: Sample i is drawn from seed + i.
            batch_size: Images drawn at a time on each device.
            rounding: How images become uint8.
        """
        self.every_n_steps = every_n_steps
        self.config = EvaluationConfig(
            quick=num_images,
            reference=reference,
            network=network,
            weights=weights,
            trust_torchscript=trust_torchscript,
            cfg_scale=cfg_scale,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            rounding=rounding,
        )
        self._test: VARTest | None = None
        self._done_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open network and reference.

        Raises:
            UserError: If one is not to be had: better now than hours later.
        """
        if self.every_n_steps:
            assert isinstance(pl_module, VARWeights)
            self._test = VARTest.open(pl_module, self.config, "--fid.")
            self._done_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate when it is time; every process comes here at the same step."""
        step = trainer.global_step
        # Batches that are accumulated share a step.
        is_due = self._test is not None and step % self.every_n_steps == 0
        if is_due and step != self._done_step:
            self._done_step = step
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._test is not None
        assert isinstance(pl_module, VARWeights)
        started = time.monotonic()
        try:
            with undisturbed(pl_module) as module:
                found = self._test.run(module, None)
        # Whatever it was: a training of days must not end for a number beside it.
        except Exception as error:
            if isinstance(error, distributed.DistBackendError):
                raise  # the processes do not hear each other any more
            if not isinstance(error, OtherProcessError):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                say(f"step {trainer.global_step:,}: no quick FID ({reason}); training goes on")
            return
        self._publish(trainer, found, time.monotonic() - started)

    def _publish(self, trainer: Trainer, found: Evaluation, took_s: float) -> None:
        if not trainer.is_global_zero:
            return
        figures = found.to_dict()
        # At its own step, which need not be one that Lightning logs at.
        for logger in trainer.loggers:
            tagged = {f"{TAG}/{name}": value for name, value in figures.items()}
            logger.log_metrics(tagged, trainer.global_step)
        measures = found.measures[0]
        told = [f"{measures.title('frechet')} {measures.frechet:.4g}"]
        if measures.score_mean is not None:
            told.append(f"{measures.title('score_mean')} {measures.score_mean:.4g}")
        say(
            f"step {trainer.global_step:,}: {', '.join(told)} ({measures.num_images:,} images, "
            f"{took_s:.0f} s)"
        )
