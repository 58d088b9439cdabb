"""The networks of stage 2: trained, averaged, spread over processes, looked at, written out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from varlit.errors import UserError
from varlit.generation.editing.known import KnownTokens, known_scales
from varlit.generation.sampler import Drawn, ImageSeeds, Sampler, SamplingSettings
from varlit.models.config import VARConfig
from varlit.models.files import save_var
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.costs import TransformerShape, transformer_costs
from varlit.training.lora import merged
from varlit.training.optim import OptimConfig
from varlit.training.sharding import ShardedStrategy, whole_network
from varlit.training.stage import StageModule
from varlit.training.var_card import compute_line, derived_lines
from varlit.training.var_start import start_from


class VARWeights(StageModule):
    """What a VAR in training is made of; `VARModule` says what its steps do.

    Attributes:
        config: Shape of the transformer.
        optim_config: Optimizer and schedule.
        network: The transformer that is trained.
        average: Its averaged copy, where averaging is on.
        num_classes: Labels 0 .. num_classes - 1.
        tokenizer_folder: Of the tokenizer that made the cache.
        init_from: A VAR to start from, until it has been taken over.
    """

    config: VARConfig
    optim_config: OptimConfig
    network: VAR
    average: VAR | None
    num_classes: int
    tokenizer_folder: Path
    init_from: str
    # In lists, so that they are no submodules and belong to no checkpoint: the frozen tokenizer,
    # its quantizer, and a whole copy of sharded weights while somebody looks at them.
    _tokenizer: list[VQVAE]
    _teacher: list[MultiScaleQuantizer]
    _whole: list[VAR]

    @property
    def averaged(self) -> VAR:
        """The weights to look at: averaged where averaging is on."""
        if self._whole:
            return self._whole[0]
        return self.network if self.average is None else self.average

    @contextmanager
    def gathered(self, everywhere: bool = False) -> Iterator[None]:
        """Within, `averaged` is whole in the first process; every process must enter.

        It costs that process 4 bytes a weight where the weights are sharded, else nothing.

        Args:
            everywhere: Make it whole in every process.
        """
        if isinstance(self.averaged, FSDPModule):
            copy = whole_network(self.averaged, keep=everywhere or self.global_rank == 0)
            self._whole = [] if copy is None else [copy]
        try:
            yield
        finally:
            self._whole = []

    @property
    def tokenizer(self) -> VQVAE:
        """The frozen tokenizer, on this module's device."""
        tokenizer = self._tokenizer[0]
        if tokenizer.last_layer.device != self.device:
            tokenizer.to(self.device)
        return tokenizer

    @property
    def teacher(self) -> MultiScaleQuantizer:
        """The quantizer that makes inputs of tokens, on this module's device."""
        return self._teacher[0].to(self.device)

    @property
    def tokens_per_image(self) -> int:
        """L, for the curves of speed."""
        return self.network.scales.num_tokens

    @property
    def training_flops_per_image(self) -> float:
        """Operations of forward and backward for one image, by formula; fewer with LoRA."""
        width = self.config.resolved_width
        shape = TransformerShape(
            self.config.depth,
            width,
            round(self.config.mlp_ratio * width),
            self._tokenizer[0].config.codebook_size,
            self.network.steps,
        )
        sizes = [(p.numel(), p.requires_grad) for p in self.network.parameters()]
        trained = sum(size for size, is_trained in sizes if is_trained)
        # Frozen weights get no gradient: a third of the work.
        share = trained / sum(size for size, _ in sizes)
        return transformer_costs(shape).forward * (2 + share)

    @property
    def card_lines(self) -> dict[str, str]:
        """What the start card says beside what it says of every module."""
        batch, steps = self.global_batch_size, self.total_steps
        is_cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if is_cuda else ""
        flops, devices = self.training_flops_per_image, self.trainer.world_size
        return {
            **derived_lines(self.config, self.optim_config, batch, steps),
            "compute": compute_line(flops, steps * batch, name, devices),
        }

    def configure_model(self) -> None:
        """Spread the weights over the processes where the strategy does so.

        Raises:
            UserError: If the optimizer wants matrices that are not cut.
        """
        strategy = None if self._trainer is None else self._trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            if self.optim_config.optimizer == "muon":
                raise UserError(
                    "optim.optimizer muon wants whole matrices, and --trainer fsdp cuts them; take "
                    "--trainer ddp or adamw"
                )
            self._take_over()
            for network in (self.network, self.average):
                if network is not None:
                    strategy.shard(network)

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
        return self._sampled(labels, settings, seed, with_frames)

    @torch.no_grad()
    def complete(self, tokens: Tensor, labels: Tensor, num_known: int, seed: int = 0) -> Tensor:
        """Draw pyramids anew whose first steps are given, without guidance.

        Args:
            tokens: (B, L).
            labels: (B,).
            num_known: Steps that are kept: scales, or tokens of a raster scan.
            seed: As in `draw`.

        Returns:
            Images (B, 3, H, W).
        """
        known = known_scales(tokens, self.network.steps, num_known) if num_known else None
        return self._sampled(labels, SamplingSettings(cfg_scale=0.0), seed, known=known).images

    def _sampled(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        seed: int,
        with_frames: bool = False,
        known: KnownTokens | None = None,
    ) -> Drawn:
        seeds = ImageSeeds(range(seed, seed + len(labels)))
        # Plain, and under autocast: the weights are others each time, so neither a copy in half
        # precision nor a CUDA graph would be used twice.
        sampler = Sampler(self.averaged.eval(), self.tokenizer)
        with self.trainer.strategy.precision_plugin.forward_context():
            return sampler.draw(labels, settings, seeds, with_frames, known)

    def export(self, folder: Path) -> None:
        """Write the transformer, with its tokenizer, as a folder that describes itself."""
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", ())
        fingerprint = self.hparams["tokenizer_hash"]
        save_var(merged(self.averaged), self.tokenizer_folder, folder, tuple(names), fingerprint)

    def _take_over(self) -> None:
        """Start from another VAR, once, and never in a resumed run."""
        if self.init_from:
            names = getattr(getattr(self.trainer, "datamodule", None), "class_names", ())
            start_from(self.network, self.init_from, names, self._tokenizer[0])
            if self.average is not None:
                self.average.load_state_dict(self.network.state_dict())
        self.init_from = ""
