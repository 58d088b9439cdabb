"""Stage 2 as a LightningModule: next-scale prediction on cached token pyramids."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.sampler import Drawn, ImageSeeds, Sampler, SamplingSettings
from varlit.losses.next_scale import next_scale_loss
from varlit.metrics.fid import InceptionMetrics
from varlit.models.config import VARConfig, check_share
from varlit.models.files import load_tokenizer, save_var, tokenizer_hash
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.training.ema import averaged_copy, update_average
from varlit.training.evaluation import (
    EvaluationConfig,
    measure_samples,
    open_metrics,
    told,
)
from varlit.training.optim import OptimConfig, build_adamw, gradient_norm, set_schedule
from varlit.training.stage import StageModule


class VARModule(StageModule):
    """Train the VAR transformer on a token cache."""

    architecture_keys = ("var", "num_classes", "tokenizer_hash")

    def __init__(
        self,
        var: VARConfig = VARConfig(),
        optim: OptimConfig = OptimConfig(),
        num_classes: int = 1000,
        tokenizer: str = "",
        label_smoothing: float = 0.0,
        evaluation: EvaluationConfig = EvaluationConfig(),
    ) -> None:
        """Build the transformer and read its tokenizer.

        Args:
            var: Shape of the transformer; `depth` is the one dial.
            optim: Optimizer and schedule.
            num_classes: Number of labels; taken from the cache.
            tokenizer: Folder of the tokenizer that made the cache; taken from the cache.
            label_smoothing: Share of probability spread over all codes.
            evaluation: What `varlit var test` draws and compares with.
        """
        super().__init__()
        self.config, self.optim_config = VARConfig.of(var), OptimConfig.of(optim)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        check_share("label_smoothing", label_smoothing)
        self.evaluation = EvaluationConfig.of(evaluation)
        # A hook for tests, which have no Inception.
        self.open_metrics = open_metrics
        self._metrics: InceptionMetrics | None = None
        self.tokenizer_folder = Path(tokenizer)
        # In a list, so that the frozen tokenizer is no submodule: it belongs to no checkpoint.
        self._tokenizer = [load_tokenizer(self.tokenizer_folder)]
        self.save_hyperparameters(
            {
                "var": self.config.to_dict(),
                "optim": self.optim_config.to_dict(),
                "num_classes": num_classes,
                "tokenizer": tokenizer,
                "tokenizer_hash": tokenizer_hash(self._tokenizer[0]),
                "label_smoothing": label_smoothing,
                "evaluation": self.evaluation.to_dict(),
            }
        )
        self.network = VAR(self.config, self._tokenizer[0].config, num_classes)
        self.average = averaged_copy(self.network) if self.optim_config.ema_decay else None
        self.next_command, self.test_protocol = "", {}

    @property
    def averaged(self) -> VAR:
        """The weights to look at: averaged where averaging is on."""
        return self.network if self.average is None else self.average

    @property
    def tokenizer(self) -> VQVAE:
        """The frozen tokenizer, on this module's device."""
        tokenizer = self._tokenizer[0]
        if tokenizer.last_layer.device != self.device:
            tokenizer.to(self.device)
        return tokenizer

    def setup(self, stage: str) -> None:
        """Check that the cache was made by this tokenizer.

        Raises:
            UserError: If another tokenizer made it.
        """
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        cached = getattr(datamodule, "tokenizer_hash", None)
        own = self.hparams["tokenizer_hash"]
        if cached is not None and cached != own:
            raise UserError(
                f"the token cache was made by tokenizer {cached[:12]}, but {self.tokenizer_folder} "
                f"holds {own[:12]}. Write the cache again: make cache-tokens"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with the official groups."""
        return build_adamw(self.network, self.optim_config)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the norm as `optim.grad_clip` says, and log it on log steps."""
        parameters = list(self.network.parameters())
        if self.is_log_step:
            self.log("optim/grad_norm", gradient_norm(parameters))
        if self.optim_config.grad_clip:
            torch.nn.utils.clip_grad_norm_(parameters, self.optim_config.grad_clip)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of all tokens given all coarser scales."""
        optimizer = self.optimizers()
        args = (self.global_step, self.total_steps, self.global_batch_size)
        set_schedule(optimizer, self.optim_config, *args)  # type: ignore[arg-type]
        loss, scalars = self._loss(batch, self.network, with_accuracy=self.is_log_step)
        if self.is_log_step:
            scalars["optim/lr"] = torch.tensor(optimizer.param_groups[0]["lr"])  # type: ignore
            self.log_at(scalars, self.global_step + 1)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averaged weights, before any checkpoint can be written."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            decay = self.optim_config.ema_decay
            update_average(self.average, self.network, decay, self.global_step + 1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out pyramids; labels are never dropped here."""
        _, scalars = self._loss(batch, self.averaged.eval(), with_accuracy=True)
        named = {f"val/{name}": value for name, value in scalars.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(batch["tokens"]))

    def on_test_start(self) -> None:
        """Ask for Inception and its reference before the long part."""
        self._metrics = self.open_together(lambda: self.open_metrics(self.evaluation))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out pyramids."""
        _, scalars = self._loss(batch, self.averaged.eval(), with_accuracy=True)
        chosen = {f"test/{name}": scalars[name] for name in ("loss/mean", "accuracy/mean")}
        self.log_dict(chosen, sync_dist=True, batch_size=len(batch["tokens"]))

    def on_test_epoch_end(self) -> None:
        """Draw the images and measure FID and inception score."""
        assert self._metrics is not None
        ranks = (self.global_rank, self.trainer.world_size)
        sampler = Sampler(self.averaged.eval(), self.tokenizer)
        settings = self.evaluation.sampling()

        def draw(labels: Tensor, seeds: list[int]) -> Tensor:
            with self.trainer.strategy.precision_plugin.forward_context():
                return sampler.draw(labels, settings, ImageSeeds(seeds)).images

        report = measure_samples(draw, self.num_classes, self.evaluation, self._metrics, *ranks)
        self.test_protocol = {
            **report.protocol,
            "sampling": self.evaluation.to_dict(),
            "sampling_precision": str(self.trainer.precision),
            "device": self.device.type,
        }
        self.log_dict(told(report))

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        seed: int = 0,
        cfg_scale: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        with_frames: bool = True,
    ) -> Drawn:
        """Draw images of `labels` (B,); image i depends on its label and `seed + i` alone."""
        settings = SamplingSettings(cfg_scale, top_k, top_p)
        seeds = ImageSeeds(range(seed, seed + len(labels)))
        sampler = Sampler(self.averaged.eval(), self.tokenizer)
        with self.trainer.strategy.precision_plugin.forward_context():
            return sampler.draw(labels, settings, seeds, with_frames)

    def export(self, folder: Path) -> None:
        """Write the transformer, with its tokenizer, as a folder that describes itself."""
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", ())
        fingerprint = self.hparams["tokenizer_hash"]
        save_var(self.averaged, self.tokenizer_folder, folder, tuple(names), fingerprint)

    def _loss(
        self, batch: dict[str, Tensor], network: VAR, with_accuracy: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and its scalars, mean, last scale and every scale."""
        tokens, scales = batch["tokens"], network.scales
        logits = network(batch["label"], self.tokenizer.teacher_inputs(tokens))
        terms = next_scale_loss(logits, tokens, scales, self.label_smoothing, with_accuracy)
        scalars = {"loss/mean": terms.loss.detach(), "loss/last_scale": terms.loss_by_scale[-1]}
        scalars |= _by_scale("scale_loss", terms.loss_by_scale, scales.names)
        if terms.accuracy is not None and terms.accuracy_by_scale is not None:
            scalars["accuracy/mean"] = terms.accuracy
            scalars["accuracy/last_scale"] = terms.accuracy_by_scale[-1]
            scalars |= _by_scale("scale_accuracy", terms.accuracy_by_scale, scales.names)
        return terms.loss, scalars


def _by_scale(group: str, values: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {f"{group}/{name}": value for name, value in zip(names, values, strict=True)}
