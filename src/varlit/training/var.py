"""Stage 2 as a LightningModule: next-scale prediction on cached token pyramids."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.losses.next_scale import NextScaleTerms, next_scale_loss
from varlit.models.config import VARConfig, check_share
from varlit.models.files import load_tokenizer, tokenizer_hash
from varlit.models.var import VAR
from varlit.training.ema import averaged_copy, update_average
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.lora import LoRAConfig, add_lora
from varlit.training.muon import build_optimizer
from varlit.training.optim import OptimConfig, set_schedule
from varlit.training.sharding import whole
from varlit.training.var_evaluation import VARTest, published_beside, titles_of
from varlit.training.var_scalars import ClippingCount, UpdateRatio, loss_scalars
from varlit.training.var_speed import SpeedConfig, speed_up
from varlit.training.var_weights import VARWeights


class VARModule(VARWeights):
    """Train the VAR transformer on a token cache."""

    architecture_keys = ("var", "num_classes", "tokenizer_hash", "lora", "optim.optimizer")

    def __init__(
        self,
        var: VARConfig = VARConfig(),
        optim: OptimConfig = OptimConfig(),
        num_classes: int = 1000,
        tokenizer: str = "",
        label_smoothing: float = 0.0,
        evaluation: EvaluationConfig = EvaluationConfig(),
        init_from: str = "",
        lora: LoRAConfig = LoRAConfig(),
        speed: SpeedConfig = SpeedConfig(),
    ) -> None:
        """Build the transformer and read its tokenizer.

        Args:
            var: Shape of the transformer; `depth` is the one dial.
            optim: Optimizer and schedule.
            num_classes: Number of labels; taken from the cache.
            tokenizer: Folder of the tokenizer that made the cache; taken from the cache.
            label_smoothing: Share of probability spread over all codes.
            evaluation: What `varlit var test` draws and compares with.
            init_from: A VAR (a run's name or a folder) to take the weights from when training
                begins; its classes and scales may differ. Ignored when a run is resumed.
            lora: Train low-rank additions only.
            speed: How the same is computed faster or in less memory.
        """
        super().__init__()
        self.config, self.optim_config = VARConfig.of(var), OptimConfig.of(optim)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        check_share("label_smoothing", label_smoothing)
        self.evaluation = EvaluationConfig.of(evaluation)
        self.init_from, lora = init_from, LoRAConfig.of(lora)
        self.speed = SpeedConfig.of(speed)
        if lora.rank and not init_from:
            raise UserError("model.lora adds to a trained VAR; say which: --model.init_from RUN")
        self.tokenizer_folder = Path(tokenizer)
        # In a list, so that the frozen tokenizer is no submodule: it belongs to no checkpoint.
        self._tokenizer = [load_tokenizer(self.tokenizer_folder)]
        # Codebook and phi are all that training reads; encoder and decoder stay where they are.
        self._teacher = [copy.deepcopy(self._tokenizer[0].quantizer)]
        self.save_hyperparameters(
            {
                "var": self.config.to_dict(),
                "optim": self.optim_config.to_dict(),
                "num_classes": num_classes,
                "tokenizer": tokenizer,
                "tokenizer_hash": tokenizer_hash(self._tokenizer[0]),
                "label_smoothing": label_smoothing,
                "evaluation": self.evaluation.to_dict(),
                "init_from": init_from,
                "lora": lora.to_dict() if lora.rank else {},
                "optim.optimizer": "muon" if self.optim_config.optimizer == "muon" else None,
            }
        )
        self.network = VAR(self.config, self._tokenizer[0].config, num_classes)
        if lora.rank:
            add_lora(self.network, lora)
        self.average = averaged_copy(self.network) if self.optim_config.ema_decay else None
        # In a list as well: a whole copy of sharded weights, while somebody looks at them.
        self._whole: list[VAR] = []
        self._clipping = ClippingCount(self.since_log)
        self._update = UpdateRatio(self._middle_weight)
        self.next_command, self.test_protocol = "", {}
        self.published: dict[str, dict[str, float]] = {}
        self.titles: dict[str, str] = {}
        self._test: VARTest | None = None

    def setup(self, stage: str) -> None:
        """Check that the cache was made by this tokenizer; without training, take the start.

        Raises:
            UserError: If another tokenizer made it, or the start does not fit.
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
        if stage != "fit" and not self.trainer.ckpt_path:
            self._take_over()

    def on_fit_start(self) -> None:
        """Take over another VAR's weights.

        Raises:
            UserError: If the other VAR does not fit.
        """
        self._take_over()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As `StageModule`; and a resumed run does not start from another VAR."""
        saved = checkpoint.get("hyper_parameters", {})
        if isinstance(saved.get("var"), dict):
            # Fields that are younger than the checkpoint had the value that is now the default.
            saved["var"] = VARConfig().to_dict() | saved["var"]
        super().on_load_checkpoint(checkpoint)
        self.init_from = ""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with the official groups, or what `optim.optimizer` names."""
        return build_optimizer(self.network, self.optim_config)

    def prepare_network(self) -> None:
        """Choose how to attend, compile and checkpoint."""
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        speed_up(self.network, self.speed, self, max(1, self.global_batch_size // shares))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the norm as `optim.grad_clip` says, log it on log steps, have the step judged."""
        clip = self.optim_config.grad_clip
        if not (self.is_log_step or clip or self.guard.is_on):
            return
        norm = self.guard.gradient_norm(self.network)
        self.guard.judge(optimizer)
        if clip:
            self._clipping.add(norm, clip)
        if self.is_log_step:
            self.log("optim/grad_norm", norm)
            self.log("optim/clipped_share", self._clipping.read())
        if clip:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), clip, norm)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of all tokens given all coarser scales."""
        optimizer = self.optimizers()
        args = (self.global_step, self.total_steps, self.global_batch_size)
        set_schedule(optimizer, self.optim_config, *args)  # type: ignore[arg-type]
        terms = self._terms(batch, self.network, with_details=self.is_log_step)
        named = {"loss/mean": terms.loss, "scale_loss": terms.loss_by_scale}
        self.guard.see(terms.loss, named)
        if self.is_log_step:
            group = optimizer.param_groups[0]  # type: ignore[union-attr]
            rates = {"optim/lr": group["lr"], "optim/weight_decay": group["weight_decay"]}
            scalars = loss_scalars(terms, self.network.scales.names)
            self.log_at({**scalars, **rates}, self.global_step + 1)
        return terms.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averaged weights, before any checkpoint can be written."""
        is_log_step = self.is_log_step
        if is_log_step:
            self._update.begin()
        super().optimizer_step(*args, **kwargs)
        if is_log_step:
            self.log("optim/update_ratio", whole(self._update.end()))
        if self.average is not None:
            decay = self.optim_config.ema_decay
            update_average(self.average, self.network, decay, self.global_step + 1)
        self.guard.finish(self.global_step + 1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out pyramids; labels are never dropped here."""
        scalars = self._held_out_scalars(batch)
        named = {f"val/{name}": value for name, value in scalars.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(batch["tokens"]))

    def on_test_start(self) -> None:
        """Ask for the feature network and the references before the long part."""
        self._test = VARTest.open(self, self.evaluation)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out pyramids, where there are any."""
        if not batch:
            return
        scalars = self._held_out_scalars(batch)
        chosen = {f"test/{name}": scalars[name] for name in ("loss/mean", "accuracy/mean")}
        self.log_dict(chosen, sync_dist=True, batch_size=len(batch["tokens"]))

    def on_test_epoch_end(self) -> None:
        """Draw the images and measure them."""
        assert self._test is not None
        found = self._test.run(self, Path(self.trainer.default_root_dir))
        self.test_protocol = found.protocol
        self.published, self.titles = published_beside(self, found), titles_of(found)
        self.log_dict(found.to_dict())

    def _middle_weight(self) -> Tensor:
        layers = self.network.layers
        weight = layers[len(layers) // 2].mlp[2].weight
        assert isinstance(weight, Tensor)
        return weight

    def _held_out_scalars(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        network = self.averaged.eval()
        return loss_scalars(self._terms(batch, network, with_details=True), network.scales.names)

    def _terms(self, batch: dict[str, Tensor], network: VAR, with_details: bool) -> NextScaleTerms:
        """Loss of a batch, whose inputs are made of its tokens here."""
        tokens = batch["tokens"]
        inputs = self.teacher.teacher_inputs(tokens, self.config.order)
        logits = network(batch["label"], inputs)
        smoothing = self.label_smoothing
        return next_scale_loss(logits, tokens, network.scales, smoothing, with_details)
