"""Stage 1 as a LightningModule: one fused step for the tokenizer and its discriminator."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from varlit.losses.tokenizer import TokenizerLoss, TokenizerLossConfig
from varlit.metrics.codebook import CodebookUsage
from varlit.models.config import TokenizerConfig
from varlit.models.discriminator import DiscriminatorConfig, build_discriminator
from varlit.models.files import save_tokenizer
from varlit.models.vqvae import VQVAE, TokenizerOutput
from varlit.training.codebook import CodebookConfig, CodebookKeeper
from varlit.training.ema import averaged_copy, update_average
from varlit.training.exact_fp32 import ExactFp32
from varlit.training.optim import TokenizerOptimConfig, build_players, schedule_players
from varlit.training.stage import StageModule
from varlit.training.tokenizer_game import StepSums, play, reconstruction_scalars
from varlit.training.tokenizer_measures import TokenizerMeasures, TokenizerMeasuresConfig
from varlit.training.tokenizer_start import start_from


class TokenizerModule(StageModule):
    """Train the multi-scale tokenizer.

    Both players share one optimizer, with groups of their own, and one backward pass. So Lightning
    counts a step once, accumulates gradients and holds back the exchange between processes as it
    does for a single network.
    """

    architecture_keys = ("tokenizer",)

    def __init__(
        self,
        tokenizer: TokenizerConfig = TokenizerConfig(),
        loss: TokenizerLossConfig = TokenizerLossConfig(),
        discriminator: DiscriminatorConfig = DiscriminatorConfig(),
        codebook: CodebookConfig = CodebookConfig(),
        optim: TokenizerOptimConfig = TokenizerOptimConfig(),
        measures: TokenizerMeasuresConfig = TokenizerMeasuresConfig(),
        image_size: int = 256,
        init_from: str = "",
    ) -> None:
        """Build the networks.

        Args:
            tokenizer: Shape of the network.
            loss: Weights of the terms; what has weight 0 is neither built nor computed.
            discriminator: Shape of the discriminator, used while `loss.disc_weight` is above 0.
            codebook: How codes are started and kept alive.
            optim: Optimizer and schedule.
            measures: What validation and testing measure.
            image_size: Side of the images in pixels; taken from the data.
            init_from: A tokenizer (a run's name or a folder) to take the weights from when
                training begins; its scales may differ. Ignored when a run is resumed.
        """
        super().__init__()
        self.config = TokenizerConfig.of(tokenizer)
        self.config.check_image_size(image_size)
        self.optim_config = TokenizerOptimConfig.of(optim)
        loss_config = TokenizerLossConfig.of(loss)
        disc_config = DiscriminatorConfig.of(discriminator)
        codebook_config = CodebookConfig.of(codebook)
        measures_config = TokenizerMeasuresConfig.of(measures)
        groups = {
            "tokenizer": self.config,
            "loss": loss_config,
            "discriminator": disc_config,
            "codebook": codebook_config,
            "optim": self.optim_config,
            "measures": measures_config,
        }
        plain = {name: group.to_dict() for name, group in groups.items()}
        self.save_hyperparameters({**plain, "image_size": image_size, "init_from": init_from})
        self.init_from = init_from
        self.network = VQVAE(self.config)
        self.keeper = CodebookKeeper(codebook_config, self.config)
        self.keeper.claim(self.network)
        self.average = averaged_copy(self.network) if self.optim_config.ema_decay else None
        self.loss = TokenizerLoss(loss_config)
        self.has_gan = loss_config.disc_weight > 0
        if self.has_gan:
            self.discriminator = build_discriminator(disc_config)
            self.discriminator.check_image_size(image_size)
        self.measures = TokenizerMeasures(self.config, measures_config, self.loss.perceptual)
        self.next_command, self.test_protocol = "", {}
        self._step_sums = StepSums()
        self._is_resumed = False

    @property
    def averaged(self) -> VQVAE:
        """The weights to look at: averaged where averaging is on."""
        return self.network if self.average is None else self.average

    @property
    def validation_usage(self) -> CodebookUsage:
        """Codes counted in the last validation."""
        return self.measures.usage

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0..1."""
        return self.global_step / max(self.total_steps, 1)

    @property
    def plays(self) -> bool:
        """Whether this step is one of the adversarial game."""
        return self.has_gan and self.loss.disc_active(self.progress)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW, with groups for the tokenizer and for the discriminator."""
        judge = getattr(self, "discriminator", None)
        return build_players(self.network, judge, self.optim_config)

    def setup(self, stage: str) -> None:
        """Take a start as it is where nothing is trained: measure a converted tokenizer.

        Raises:
            UserError: As `StageModule.setup`; if the start is not there or does not fit.
        """
        super().setup(stage)
        if stage != "fit" and not self.trainer.ckpt_path:
            self._take_over()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As `StageModule`; and a resumed run does not start from another tokenizer."""
        super().on_load_checkpoint(checkpoint)
        self._is_resumed = True

    def on_fit_start(self) -> None:
        """Take over another tokenizer's weights, and open what validation needs.

        Raises:
            UserError: If the other tokenizer does not fit, or a file is missing.
        """
        self._take_over()
        self._open_validation()

    def configure_callbacks(self) -> list[Callback]:
        """Keep TF32 off while it learns."""
        return [ExactFp32()]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One fused pass: both networks learn from one reconstruction and one backward pass.

        Plain DDP can follow it (vaex left this as a to-do). With accumulation a step is several of
        these. It is the step on the whole batch, but for the adaptive weight, which is that of
        each part, and for the draws of dropout and distortions.
        """
        images = batch["image"]
        self._set_schedules()
        output = self._reconstruct(images, batch_idx)
        terms = self.loss.reconstruction_terms(output, images)
        objective, total, scalars = terms.total, terms.total, reconstruction_scalars(terms)
        if self.plays:
            place = (self.network.last_layer, self.progress, self.global_step)
            game = play(self.loss, self.discriminator, output, images, terms, *place)
            objective, total, scalars = game.objective, game.value, scalars | game.scalars
        elif self.has_gan:
            # Plain DDP expects every parameter in the graph; a zero is cheaper than a pass.
            objective = total + sum(p.sum() for p in self.discriminator.parameters()) * 0.0
        named = {"loss/total": total, **scalars}
        self.guard.see(terms.total, named)  # without the game, whose start is a planned leap
        self._step_sums.add(named, output.tokens, output.searched)
        if self.is_log_step and self.ends_step(batch_idx):
            self._log_scalars()
        return objective

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each network by itself; a resting discriminator has no gradient at all.

        Before that the step is judged, which is one for both. Not Lightning's clipping: it refuses
        fused optimizers, although bf16 scales nothing.
        """
        players: dict[str, torch.nn.Module] = {"optim": self.network}
        if self.plays:
            players["gan"] = self.discriminator
        elif self.has_gan:
            # Zeros would let AdamW's decay shrink it and its counter run.
            self.discriminator.zero_grad(set_to_none=True)
        norms = {group: self.guard.gradient_norm(network) for group, network in players.items()}
        self.guard.judge(optimizer)
        limit = self.optim_config.grad_clip or float("inf")
        for group, network in players.items():
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), limit, norms[group])
            if self.is_log_step:
                self.log(f"{group}/grad_norm", norms[group])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move what follows the weights, before any checkpoint can be written."""
        # Lightning counts this step only after this hook.
        playing, step = self.plays, self.global_step + 1
        super().optimizer_step(*args, **kwargs)
        if playing and self.loss.lecam is not None:
            means = self._step_sums.means()
            with self.guard.keep_if_broken(self.loss.lecam.buffers()):
                self.loss.lecam.update(means["gan/logits_real"], means["gan/logits_fake"])
        found, broken = self._step_sums.looked_up(), self.guard.is_broken
        optimizer = self.trainer.optimizers[0]
        replaced = self.keeper.update(self.network, *found, optimizer, self.average, broken)
        self.since_log["restarted"] = replaced.sum() + self.since_log.get("restarted", 0)
        self._step_sums.clear()
        if self.average is not None:
            update_average(self.average, self.network, self.optim_config.ema_decay, step)
        self.guard.finish(step)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure reconstructions of held-out images, rounded to 8 bits, and code usage."""
        self._measure(batch["image"], batch_idx, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure as in validation; the figures go into metrics.json."""
        self._measure(batch["image"], batch_idx, "test")

    def predict_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Encode images to token pyramids for the cache."""
        rest = {key: value for key, value in batch.items() if key != "image"}
        return {"tokens": self.averaged.encode(batch["image"]), **rest}

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self._open_validation()
        self.measures.begin()

    def on_validation_epoch_end(self) -> None:
        """Log what is known only after the whole set: code usage, rFID."""
        found = {f"val/{name}": value for name, value in self.measures.end(may_fail=True).items()}
        self.log_at(found, self.global_step)

    def on_test_start(self) -> None:
        """Open Inception for rFID where its weights are at hand, else say what is missing."""
        self.measures.open_rfid(self.open_together)
        self.measures.begin()

    def on_test_epoch_end(self) -> None:
        """Log code usage and rFID against the very images that were reconstructed."""
        self.log_dict({f"test/{name}": value for name, value in self.measures.end().items()})
        network = "averaged" if self.average is not None else "last"
        self.test_protocol = {"network": network, **self.measures.protocol}

    def export(self, folder: Path) -> None:
        """Write a folder that describes itself."""
        save_tokenizer(self.averaged, folder)

    def _take_over(self) -> None:
        if not self.init_from or self._is_resumed:
            return
        if self.keeper.config.init != "uniform":
            rank_zero_warn("codebook.init is ignored, because init_from brings the codes")
        start_from(self.network, self.init_from)
        if self.average is not None:
            self.average.load_state_dict(self.network.state_dict())

    def _reconstruct(self, images: Tensor, batch_idx: int) -> TokenizerOutput:
        """A differentiable pass, as the codebook's keeper wants it."""
        if not self.init_from or self._is_resumed:
            self.keeper.prepare(self.network, images)
            if self.global_step == 0 and self.average is not None:
                # Else the average would mix the codes of k-means with those before.
                self.average.load_state_dict(self.network.state_dict())
        part = batch_idx % self.trainer.accumulate_grad_batches
        num_scales = self.keeper.draw_num_scales(len(images), part)
        temperature = self.loss.entropy_temperature
        return self.network(images, num_scales, temperature)

    def _set_schedules(self) -> None:
        optimizer, start = self.optimizers(), self.loss.config.disc_start
        assert isinstance(optimizer, torch.optim.Optimizer)
        place = self.global_step, self.total_steps, self.global_batch_size
        schedule_players(optimizer, self.optim_config, *place, start, self.plays)

    def _log_scalars(self) -> None:
        """Log the means over the parts of this step."""
        scalars = self._step_sums.means_over_ranks()
        rates = {g["player"]: g["lr"] for g in self.trainer.optimizers[0].param_groups}
        scalars["optim/lr"] = torch.tensor(rates["tokenizer"])
        if self.plays:
            scalars["gan/lr"] = torch.tensor(rates["discriminator"])
        if self.keeper.config.restart_below:
            scalars["codebook/restarted"] = self.since_log.pop("restarted", torch.zeros(())).float()
        self.log_at(scalars, self.global_step + 1)

    def _measure(self, images: Tensor, batch_idx: int, prefix: str) -> None:
        tests, validations = self.trainer.num_test_batches, self.trainer.num_val_batches
        place = batch_idx, int((tests if prefix == "test" else validations)[0])
        scalars = self.measures.measure(self.averaged.eval(), images, *place)
        named = {f"{prefix}/{name}": value for name, value in scalars.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(images))

    def _open_validation(self) -> None:
        if self.measures.config.validate_rfid and not self.measures.was_asked_for_rfid:
            self.measures.open_rfid(self.open_together)
