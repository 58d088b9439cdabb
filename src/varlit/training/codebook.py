"""Codebook health while training: k-means start, restart of dead codes, averaged codes, dropout.

The rules are after rq-vae-transformer (restart, averages), vector-quantize-pytorch (k-means) and
XQ-GAN (quantizer dropout). Every process ends each call with the same codes, bit for bit.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from varlit.errors import UserError
from varlit.metrics.ranks import sum_over_ranks
from varlit.models.config import PlainConfig, TokenizerConfig, check_share
from varlit.models.vqvae import VQVAE
from varlit.ops.kmeans import kmeans, sums_by_code
from varlit.training.global_batch import (
    in_global_order,
    of_first_rank,
    own_rows,
    rank_and_size,
)
from varlit.training.stage import SEED_STRIDE

# The first round clusters the latent maps, for which the codes at hand are as good as none; the
# second what those clusters leave over at each scale. Further rounds change little.
KMEANS_ROUNDS = 2
# A new code has twice the hits that it must keep: ln 2 / (1 - ema_decay) steps to find its own.
GRACE = 2.0
DRAWS = ("kmeans", "restart", "dropout")


@dataclass(frozen=True)
class CodebookConfig(PlainConfig):
    """How the codes are started and kept alive; the defaults are official VAR's: nothing is done.

    All but `update` may be changed when a run is resumed; `init` has no effect then.
    """

    init: Literal["uniform", "kmeans"] = "uniform"
    """Codes at the very first step: vaex's small uniform ones, or k-means on the first batch. With
    `model.init_from` it is ignored: the other tokenizer brings its codes."""
    restart_below: float = 0.0
    """A code that is hit less than this many times a step, averaged over steps and counted over all
    devices and scales, is replaced by a random residual vector of the batch; 0 = off."""
    update: Literal["gradient", "ema"] = "gradient"
    """How codes move: by the codebook loss, or as moving averages of the vectors that find them
    (the codebook loss then trains phi only)."""
    ema_decay: float = 0.99
    """Decay per step of the moving averages, of hits and with `update` ema of codes."""
    dropout: float = 0.0
    """Share of the images that keep only their first n scales, n evenly between
    `dropout_min_scales` and all (quantizer dropout; XQ-GAN takes 0.1)."""
    dropout_min_scales: int = 3
    """Fewest scales that an image keeps under dropout."""

    def __post_init__(self) -> None:
        check_share("codebook.ema_decay", self.ema_decay)
        check_share("codebook.dropout", self.dropout, up_to_one=True)
        if not self.restart_below >= 0:
            raise UserError(
                "codebook.restart_below counts hits a step and must not be negative (0 = off); "
                f"got {self.restart_below}"
            )
        if self.dropout_min_scales < 1:
            raise UserError(
                f"codebook.dropout_min_scales must be at least 1; got {self.dropout_min_scales}"
            )
        if self.ema_decay != CodebookConfig.ema_decay and not self.counts_hits:
            _warn_ignored("ema_decay", "update is `gradient` and restart_below 0")
        if self.dropout_min_scales != CodebookConfig.dropout_min_scales and not self.dropout:
            _warn_ignored("dropout_min_scales", "dropout is 0")

    @property
    def counts_hits(self) -> bool:
        """Whether anything here goes by how often codes are hit."""
        return self.update == "ema" or self.restart_below > 0


class CodebookKeeper(nn.Module):
    """Looks after the codes of a tokenizer in training; has buffers only, no parameters.

    How a training step uses it, `network` being the bare VQVAE and not its DDP wrapper:

    1. Once, before optimizer and DDP are made: `claim(network)`.
    2. Before the pass: `prepare(network, images)`.
    3. `network(images, keeper.draw_num_scales(len(images)))`.
    4. After the optimizer's step and before weights are averaged:
       `update(network, output.tokens, output.searched, optimizer, average)`.

    Every process must make each call. Draws depend on the run's seed and on the number of updates
    alone, and name places of the global batch, of which rank r holds every `world_size`-th image:
    N processes choose the vectors and images that one process would. Sums are in fp64. So one
    process and several agree but for what the networks' own rounding does to the vectors. Ranks
    must hold equally many images, as `EpochBatchSampler` gives them. With accumulated gradients
    hand `update` the parts of the step concatenated in order, which is again the global batch;
    `prepare` clusters the first part alone.

    With `update` ema, code v follows the mean of all vectors z, over all scales, that find it. In
    the pyramid phi stands between a code and what it adds, so this is the code that equals its
    vectors, not the one that leaves least over after phi; the codebook loss trains phi to mend
    that, and a phi far from the identity makes averages worse than gradients.
    """

    hits: Tensor  # (V,) averaged hits per step, negative until first counted
    num_updates: Tensor  # int64, calls of `update` since the start of the run

    def __init__(self, config: CodebookConfig, tokenizer: TokenizerConfig) -> None:
        """Check that the settings fit the tokenizer.

        Raises:
            UserError: If dropout would keep more scales than there are.
        """
        super().__init__()
        self.config, self.num_scales = config, len(tokenizer.scales)
        if config.dropout and config.dropout_min_scales > self.num_scales:
            raise UserError(
                f"codebook.dropout_min_scales {config.dropout_min_scales} is more than the "
                f"{self.num_scales} scales of the tokenizer; set it lower, or codebook.dropout 0"
            )
        if config.dropout and config.dropout_min_scales == self.num_scales:
            _warn_ignored("dropout", f"dropout_min_scales keeps all {self.num_scales} scales")
        self.register_buffer("hits", torch.full((tokenizer.codebook_size,), -1.0))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._known_step: int | None = None
        self._is_prepared = False
        self.register_load_state_dict_post_hook(_forget)

    def claim(self, network: VQVAE) -> None:
        """With `update` ema, take the codes away from the optimizer and from DDP."""
        if self.config.update == "ema":
            network.quantizer.codebook.requires_grad_(False)

    @torch.no_grad()
    def prepare(self, network: VQVAE, images: Tensor) -> None:
        """At the very first step with `init` kmeans, put the codes where the vectors are.

        The vectors are those that the pyramid looks up, over all scales: as many of the finest as
        there are, so that the fine scales get most of the codes.

        Args:
            network: The tokenizer in training.
            images: This process's part of the first batch (B, 3, H, W).
        """
        if self._is_prepared:
            return
        self._is_prepared = True
        if self.config.init == "uniform" or self._step() > 0:
            return
        f, codes = network.features(images), network.quantizer.codebook.weight
        generator = self._generator("kmeans")
        for _ in range(KMEANS_ROUNDS):
            vectors = in_global_order(network.quantizer(f).searched).flatten(0, 1)
            # Of a broken image nothing can be learned, and one NaN would become all codes.
            vectors = vectors[torch.isfinite(vectors).all(dim=1)]
            if len(vectors):
                centres = kmeans(vectors, len(codes), generator, network.quantizer.search)
                codes.copy_(of_first_rank(centres))
        if len(vectors) < len(codes):
            warnings.warn(
                f"k-means had {len(vectors):,} vectors for {len(codes):,} codes, so some codes are "
                "alike; take a larger batch, or codebook.restart_below to part them",
                stacklevel=2,
            )

    def draw_num_scales(self, num_images: int, micro_step: int = 0) -> Tensor | None:
        """How many scales each image keeps, for the tokenizer's forward; None without dropout.

        Args:
            num_images: Images in this process's part of the batch, B.
            micro_step: Which part of an accumulated batch, so that parts draw differently.

        Returns:
            (B,) int64. Each image is drawn by itself, with chance `config.dropout`.
        """
        if not self.config.dropout:
            return None
        rank, world_size = rank_and_size()
        generator = self._generator("dropout", micro_step)
        size, fewest = num_images * world_size, self.config.dropout_min_scales
        is_cut = torch.rand(size, generator=generator) < self.config.dropout
        kept = torch.randint(fewest, self.num_scales + 1, (size,), generator=generator)
        num_scales = torch.where(is_cut, kept, self.num_scales)
        return num_scales[rank::world_size].to(self.hits.device)

    @torch.no_grad()
    def update(
        self,
        network: VQVAE,
        tokens: Tensor,
        searched: Tensor,
        optimizer: Optimizer | None = None,
        average: VQVAE | None = None,
        is_broken: Tensor | None = None,
    ) -> Tensor:
        """Count hits, move averaged codes, replace dead ones. Never waits for the device.

        Args:
            network: The tokenizer in training, whose codes change in place.
            tokens: Of the step's pass, this process's part (B, L).
            searched: Of the same pass (B, L, C).
            optimizer: The tokenizer's; its moments of replaced codes are set to 0.
            average: The averaged tokenizer; replaced codes are replaced there too, or it would
                hold mixtures of old and new for long.
            is_broken: () bool, whether the step is skipped, on all processes: nothing is done then.

        Returns:
            (V,) bool, the codes that were replaced; the same on all processes.

        Raises:
            UserError: If `restart_below` is more than evenly used codes would get.
        """
        codes, config, step = network.quantizer.codebook.weight, self.config, self._step()
        replaced = torch.zeros_like(self.hits, dtype=torch.bool)
        if config.counts_hits:
            self._check_reach(tokens)
            counts, sums, candidates = self._totals(tokens, searched)
            taken = torch.ones_like(replaced[0]) if is_broken is None else ~is_broken
            fresh = GRACE * config.restart_below or 1.0
            old = torch.where(self.hits < 0, fresh, self.hits) * config.ema_decay
            new = counts * (1 - config.ema_decay)
            if config.update == "ema":
                # The same as a ratio of two averages, without storing the one above the line.
                pull = new / (old + new).clamp(min=torch.finfo(torch.float32).tiny)
                means = sums / counts.clamp(min=1)[:, None]
                codes.copy_(torch.where(taken, codes.lerp(means, pull[:, None]), codes))
            self.hits.copy_(torch.where(taken, old + new, self.hits))
            if config.restart_below:
                replaced = (self.hits < config.restart_below) & taken
                self.hits.masked_fill_(replaced, fresh)
                _replace(codes, candidates, replaced, optimizer, average)
        self.num_updates += 1
        self._known_step = step + 1
        return replaced

    def _totals(self, tokens: Tensor, searched: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hits (V,), sums of vectors (V, C) and candidates (V, C) over all processes, fp32."""
        num_codes, num_rows = len(self.hits), tokens.numel() * rank_and_size()[1]
        counts, sums = sums_by_code(searched.flatten(0, 1), tokens.flatten(), num_codes)
        # With replacement: twins are rare in large batches, and the one not found restarts again.
        drawn = torch.randint(num_rows, (num_codes,), generator=self._generator("restart"))
        candidates = own_rows(searched, drawn.to(searched.device, non_blocking=True))
        # Joined, because one collective of a few megabytes costs less than three.
        parts = (counts[:, None], sums, candidates.double())
        total = sum_over_ranks(torch.cat(parts, dim=1)).to(searched.dtype)
        size = searched.shape[2]
        joined_counts, joined_sums, joined_candidates = total.split((1, size, size), dim=1)
        return joined_counts.squeeze(1), joined_sums, joined_candidates

    def _check_reach(self, tokens: Tensor) -> None:
        even = tokens.numel() * rank_and_size()[1] / len(self.hits)
        if self.config.restart_below >= even:
            raise UserError(
                f"codebook.restart_below {self.config.restart_below:g} would restart every code: "
                f"a step looks up {even:.3g} vectors a code. Set it to {even / 10:.2g} or less, or "
                "take larger batches or fewer codes"
            )

    def _step(self) -> int:
        if self._known_step is None:
            # Read from the device once a run; a wait in every step would stall a GPU.
            self._known_step = int(self.num_updates)
        return self._known_step

    def _generator(self, draw: str, micro_step: int = 0) -> torch.Generator:
        """A generator on the CPU that is the same on every process."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        place = (self._step() * SEED_STRIDE + micro_step) * len(DRAWS) + DRAWS.index(draw)
        return torch.Generator().manual_seed((seed * SEED_STRIDE**2 + place) % 2**63)


def _forget(keeper: CodebookKeeper, _: object) -> None:
    """After loading, ask the buffers again."""
    keeper._known_step, keeper._is_prepared = None, False


def _replace(
    codes: Tensor,
    candidates: Tensor,
    replaced: Tensor,
    optimizer: Optimizer | None,
    average: VQVAE | None,
) -> None:
    rows = replaced[:, None]
    codes.copy_(torch.where(rows, candidates, codes))
    if average is not None:
        averaged = average.quantizer.codebook.weight
        averaged.copy_(torch.where(rows, candidates, averaged))
    moments = {} if optimizer is None else optimizer.state.get(codes, {})
    for value in moments.values():
        if isinstance(value, Tensor) and value.shape == codes.shape:
            value.masked_fill_(rows, 0)


def _warn_ignored(name: str, reason: str) -> None:
    warnings.warn(f"codebook.{name} is ignored, because {reason}", stacklevel=4)
