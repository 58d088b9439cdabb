"""Stage 1 as a LightningModule: one fused step for the tokenizer and its discriminator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.func import functional_call

from varlit.errors import UserError
from varlit.losses.tokenizer import ReconstructionTerms, TokenizerLoss, TokenizerLossConfig
from varlit.metrics.codebook import CodebookUsage
from varlit.metrics.fid import InceptionMetrics
from varlit.metrics.reconstruction import psnr, ssim
from varlit.models.config import TokenizerConfig
from varlit.models.discriminator import DiscriminatorConfig, build_discriminator
from varlit.models.files import save_tokenizer
from varlit.models.vqvae import VQVAE, TokenizerOutput
from varlit.training.ema import averaged_copy, update_average
from varlit.training.optim import TokenizerOptimConfig, build_adamw, set_schedule
from varlit.training.stage import StageModule


class TokenizerModule(StageModule):
    """Train the multi-scale tokenizer."""

    architecture_keys = ("tokenizer",)

    def __init__(
        self,
        tokenizer: TokenizerConfig = TokenizerConfig(),
        loss: TokenizerLossConfig = TokenizerLossConfig(),
        discriminator: DiscriminatorConfig = DiscriminatorConfig(),
        optim: TokenizerOptimConfig = TokenizerOptimConfig(),
        image_size: int = 256,
    ) -> None:
        """Build the networks.

        Args:
            tokenizer: Shape of the network.
            loss: Weights of the terms; what has weight 0 is neither built nor computed.
            discriminator: Shape of the discriminator, used while `loss.disc_weight` is above 0.
            optim: Optimizer and schedule.
            image_size: Side of the images in pixels; taken from the data.
        """
        super().__init__()
        self.automatic_optimization = False
        self.config = TokenizerConfig.of(tokenizer)
        self.config.check_image_size(image_size)
        self.optim_config = TokenizerOptimConfig.of(optim)
        loss_config = TokenizerLossConfig.of(loss)
        disc_config = DiscriminatorConfig.of(discriminator)
        self.save_hyperparameters(
            {
                "tokenizer": self.config.to_dict(),
                "loss": loss_config.to_dict(),
                "discriminator": disc_config.to_dict(),
                "optim": self.optim_config.to_dict(),
                "image_size": image_size,
            }
        )
        self.network = VQVAE(self.config)
        self.average = averaged_copy(self.network) if self.optim_config.ema_decay else None
        self.loss = TokenizerLoss(loss_config)
        self.has_gan = loss_config.disc_weight > 0
        if self.has_gan:
            self.discriminator = build_discriminator(disc_config)
            self.discriminator.check_image_size(image_size)
        self.validation_usage = self._new_usage()
        # A hook for tests, which have no Inception.
        self.open_metrics: Callable[[], InceptionMetrics] = InceptionMetrics
        self._rfid: InceptionMetrics | None = None
        self.next_command, self.test_protocol = "", {}

    @property
    def averaged(self) -> VQVAE:
        """The weights to look at: averaged where averaging is on."""
        return self.network if self.average is None else self.average

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One AdamW for the tokenizer, one for the discriminator where there is one."""
        optimizers: list[torch.optim.Optimizer] = [build_adamw(self.network, self.optim_config)]
        if self.has_gan:
            decay = self.optim_config.disc_weight_decay
            optimizers.append(build_adamw(self.discriminator, self.optim_config, decay))
        return optimizers

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One fused step: both networks learn from one reconstruction and one backward pass.

        The generator's loss goes through the discriminator with detached weights, the
        discriminator's through a detached reconstruction, so one backward serves both; plain
        DDP can follow it (vaex left this as a to-do).
        """
        images, optimizers = batch["image"], self._optimizers()
        self._schedule(optimizers)
        progress = self.global_step / max(self.total_steps, 1)
        output: TokenizerOutput = self.network(images)
        terms = self.loss.reconstruction_terms(output, images)
        total, scalars = terms.total, _reconstruction_scalars(terms)
        plays = self.has_gan and self.loss.disc_active(progress)
        if plays:
            gan_loss, gan_scalars = self._adversarial(output, images, terms, progress)
            total, scalars = total + gan_loss, scalars | gan_scalars
        elif self.has_gan:
            # Plain DDP expects every parameter in the graph; a zero is cheaper than a pass.
            total = total + sum(p.sum() for p in self.discriminator.parameters()) * 0.0
        self.manual_backward(total)
        self._step(optimizers, with_discriminator=plays)
        if self.is_log_step:
            scalars["loss/total"] = total
            scalars["optim/lr"] = torch.tensor(optimizers[0].param_groups[0]["lr"])
            self.log_dict({name: value.detach() for name, value in scalars.items()})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure reconstructions of held-out images, rounded to 8 bits, and code usage."""
        self._measure(batch["image"], "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure as in validation; the figures go into metrics.json."""
        self._measure(batch["image"], "test")

    def predict_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Encode images to token pyramids for the cache."""
        rest = {key: value for key, value in batch.items() if key != "image"}
        return {"tokens": self.averaged.encode(batch["image"]), **rest}

    def on_validation_epoch_start(self) -> None:
        """Count codes from zero."""
        self.validation_usage = self._new_usage()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the share of codes in use, mean over the scales and at the finest."""
        self._log_usage("val")

    def on_test_start(self) -> None:
        """Open Inception for rFID where its weights are at hand, else say what is missing."""
        try:
            self._rfid = self.open_together(self.open_metrics)
        except UserError as error:
            self._rfid = None
            rank_zero_info(f"rFID is not measured: {error}")

    def on_test_epoch_end(self) -> None:
        """Log code usage and rFID against the very images that were reconstructed."""
        self._log_usage("test")
        if self._rfid is not None:
            report = self._rfid.compute().to_dict()
            self.test_protocol = report["protocol"]
            named = {k: v for k, v in report.items() if k.startswith(("fid", "frechet"))}
            self.log_dict({f"test/r{name}": float(value) for name, value in named.items()})

    def export(self, folder: Path) -> None:
        """Write the tokenizer as a folder that describes itself."""
        save_tokenizer(self.averaged, folder)

    def _adversarial(
        self, output: TokenizerOutput, images: Tensor, terms: ReconstructionTerms, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of both players, and what to log of it."""
        frozen = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, frozen, (output.reconstruction,))
        generator = self.loss.generator_term(judged)
        balance = self.loss.balance(terms.reconstruction, generator, self.network.last_layer)
        weight = self.loss.generator_weight(progress, balance)
        pair = torch.cat((images, output.reconstruction.detach().to(images.dtype)))
        real, fake = self.discriminator(pair).float().chunk(2)
        discriminator = self.loss.discriminator_term(real, fake)
        scalars = {
            "loss/adversarial": generator,
            "gan/disc_loss": discriminator,
            "gan/adaptive_weight": balance,
            "gan/generator_weight": weight,
            "gan/logits_real": real.mean(),
            "gan/logits_fake": fake.mean(),
        }
        return weight * generator + discriminator, scalars

    def _schedule(self, optimizers: list[Any]) -> None:
        for optimizer in optimizers:
            args = (self.global_step, self.total_steps, self.global_batch_size)
            set_schedule(optimizer, self.optim_config, *args)

    def _step(self, optimizers: list[Any], with_discriminator: bool) -> None:
        clip = self.optim_config.grad_clip
        for network in [self.network, self.discriminator] if with_discriminator else [self.network]:
            if clip:
                # Not Lightning's: it refuses fused optimizers, although bf16 scales nothing.
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizers[0].step()
        if with_discriminator:
            # Through Lightning's wrapper this step would be counted too, and max_steps halved.
            optimizers[1].optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            decay = self.optim_config.ema_decay
            update_average(self.average, self.network, decay, self.global_step)

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _measure(self, images: Tensor, prefix: str) -> None:
        network = self.averaged
        network.eval()
        tokens = network.encode(images)
        reconstruction = network.decode(tokens)
        self.validation_usage.update(tokens)
        if prefix == "test" and self._rfid is not None:
            self._rfid.update_reference(images)
            self._rfid.update(reconstruction)
        scalars = {
            f"{prefix}/psnr": psnr(images, reconstruction).mean(),
            f"{prefix}/ssim": ssim(images, reconstruction).mean(),
            f"{prefix}/l1": (images - reconstruction).abs().mean(),
        }
        self.log_dict(scalars, sync_dist=True, batch_size=len(images))

    def _log_usage(self, prefix: str) -> None:
        report = self.validation_usage.compute()
        self.log(f"{prefix}/code_usage", report.usage)

    def _new_usage(self) -> CodebookUsage:
        return CodebookUsage(self.network.scales, self.config.codebook_size)


def _reconstruction_scalars(terms: ReconstructionTerms) -> dict[str, Tensor]:
    names = ("l1", "l2", "perceptual", "codebook", "commitment")
    return {f"loss/{name}": getattr(terms, name) for name in names}
