"""The objective of stage 1: pixels, perception, codebook, and both sides of the adversary.

Everything is fp32 with autocast off. Every start is a share of training, so that a recipe keeps
its meaning at another batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from varlit.losses.augment import AUGMENT_KINDS, augment, blur
from varlit.losses.config import TokenizerLossConfig
from varlit.losses.gradient_penalty import r1_penalty
from varlit.losses.perceptual import PerceptualLoss
from varlit.models.vqvae import TokenizerOutput

__all__ = ["ReconstructionTerms", "TokenizerLoss", "TokenizerLossConfig"]

Judge = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, ...)


@dataclass(frozen=True)
class ReconstructionTerms:
    """The non-adversarial terms of a batch, all scalars in fp32, unweighted but for two sums."""

    reconstruction: Tensor  # weighted l1, l2 and perceptual: what the adversary is balanced against
    codes: Tensor  # weighted codebook, commitment and entropy
    l1: Tensor
    l2: Tensor
    perceptual: Tensor  # 0 where it is off
    codebook: Tensor
    commitment: Tensor
    entropy: Tensor  # 0 where it is off

    @property
    def total(self) -> Tensor:
        """The whole objective without an adversary."""
        return self.reconstruction + self.codes


class TokenizerLoss(nn.Module):
    """All of stage 1's objective behind one interface; has no parameters of its own.

    Its only state are LeCam's averages. `perceptual` is None where its weight is 0, and is a
    plain object otherwise, so that neither optimizer nor checkpoint meets its trunk.
    """

    def __init__(self, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.config = config
        self.perceptual: PerceptualLoss | None = None
        if config.perceptual_weight:
            self.perceptual = PerceptualLoss(config.perceptual_net, config.perceptual_weights)
        self.lecam: LeCam | None = None
        if config.disc_weight and config.lecam_weight:
            self.lecam = LeCam(config.lecam_decay)

    def reconstruction_terms(self, output: TokenizerOutput, images: Tensor) -> ReconstructionTerms:
        """Everything but the adversarial term.

        Args:
            output: A differentiable pass of the tokenizer over `images`.
            images: (B, 3, H, W) in [-1, 1].
        """
        config = self.config
        with torch.autocast(images.device.type, enabled=False):
            fake, real = output.reconstruction.float(), images.float()
            l1, l2 = F.l1_loss(fake, real), F.mse_loss(fake, real)
            perceptual = l2.new_zeros(())
            if self.perceptual is not None:
                perceptual = self.perceptual(fake, real).mean()
            reconstruction = (
                config.l1_weight * l1
                + config.l2_weight * l2
                + config.perceptual_weight * perceptual
            )
            codebook = self._over_scales(output.codebook_loss)
            commitment = self._over_scales(output.commitment_loss)
            entropy = output.entropy_loss if config.entropy_weight else None
            entropy = l2.new_zeros(()) if entropy is None else entropy.float()
            codes = (
                config.codebook_weight * codebook
                + config.commitment_weight * commitment
                + config.entropy_weight * entropy
            )
        terms = (l1, l2, perceptual, codebook, commitment, entropy)
        return ReconstructionTerms(reconstruction, codes, *terms)

    @property
    def entropy_temperature(self) -> float | None:
        """What the tokenizer's forward computes `entropy_loss` at; None where it has no weight."""
        return self.config.entropy_temperature if self.config.entropy_weight else None

    def disc_active(self, progress: float) -> bool:
        """Whether the discriminator plays at this share of training (0..1)."""
        return self.config.disc_weight > 0 and progress >= self.config.disc_start

    def disc_strength(self, progress: float) -> float:
        """Warm-up factor of the adversarial weight at this share of training, in 0..1."""
        if not self.disc_active(progress):
            return 0.0
        if not self.config.disc_warmup:
            return 1.0
        return min(1.0, (progress - self.config.disc_start) / self.config.disc_warmup)

    def disc_blur(self, progress: float) -> float:
        """Strength of the blur at this share of training: 1 at disc_start, falling to 0."""
        if not self.config.disc_blur_fade:
            return 0.0
        faded = (progress - self.config.disc_start) / self.config.disc_blur_fade
        return min(max(1.0 - faded, 0.0), 1.0)

    def disc_view(self, images: Tensor, progress: float) -> Tensor:
        """What the discriminator is shown in place of images: blurred and distorted, or as is.

        For real images, for reconstructions and for the generator's pass; every call draws anew.

        Args:
            images: (B, 3, H, W) in [-1, 1]; gradients flow to them.
            progress: Share of training that is done, 0..1.
        """
        config = self.config
        blurred = blur(images, self.disc_blur(progress))
        return augment(
            blurred, config.disc_augment, config.augment_probability, config.augment_cutout
        )

    def generator_term(self, logits_fake: Tensor) -> Tensor:
        """Unweighted adversarial loss of the autoencoder; weigh it by `generator_weight`."""
        return generator_loss(logits_fake, self.config.disc_loss)

    def balance(
        self,
        reconstruction: Tensor,
        nll_grad: Tensor,
        gan_grad: Tensor,
        last_layer: nn.Parameter,
    ) -> Tensor:
        """The adaptive weight, or 1 where it is switched off. Detached scalar.

        Args:
            reconstruction: What the decoder gave (B, 3, H, W), with its graph.
            nll_grad: Gradient of `ReconstructionTerms.reconstruction` with respect to it.
            gan_grad: The same of `generator_term(...)`.
            last_layer: `VQVAE.last_layer`.
        """
        config = self.config
        if not config.adaptive_weight:
            return last_layer.new_ones((), dtype=torch.float32)
        bounds = (config.adaptive_min, config.adaptive_max)
        return adaptive_weight(reconstruction, nll_grad, gan_grad, last_layer, *bounds)

    def generator_weight(self, progress: float, balance: Tensor) -> Tensor:
        """What `generator_term` is multiplied by: disc_weight * warm-up * balance."""
        return self.config.disc_weight * self.disc_strength(progress) * balance

    def discriminator_term(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Loss of the discriminator with LeCam, whose averages the module moves once a step.

        Args:
            logits_real: Logits of images, any shape.
            logits_fake: Logits of *detached* reconstructions.
        """
        loss = discriminator_loss(logits_real, logits_fake, self.config.disc_loss)
        if self.lecam is None:
            return loss
        # Penalise against the steps before: this step's own mean would be no anchor.
        return loss + self.config.lecam_weight * self.lecam.penalty(logits_real, logits_fake)

    def disc_penalties(
        self, judge: Judge, pair: Tensor, logits: Tensor, progress: float, step: int
    ) -> dict[str, Tensor]:
        """Weighted penalties beside `discriminator_term`, by name; empty where none is due.

        Args:
            judge: The discriminator, its weights learning.
            pair: Images and then as many *detached* reconstructions (2 B, 3, H, W), undistorted.
            logits: The discriminator's of `disc_view(pair)`, with their graph.
            progress: Share of training that is done, 0..1.
            step: Optimizer steps done, of which every `r1_every_n_steps`-th is R1's.
        """
        config, penalties = self.config, {}
        if config.r1_weight and (step + 1) % config.r1_every_n_steps == 0:
            real = pair[: len(pair) // 2]
            penalty = r1_penalty(lambda images: judge(self.disc_view(images, progress)), real)
            penalties["r1"] = config.r1_weight / 2 * config.r1_every_n_steps * penalty
        if config.consistency_weight:
            again = judge(augment(pair, AUGMENT_KINDS, cutout=config.augment_cutout))
            difference = F.mse_loss(again.float(), logits.float())
            penalties["consistency"] = config.consistency_weight * difference
        return penalties

    def _over_scales(self, errors: Tensor) -> Tensor:
        """One number of the (K,) errors of the partial sums."""
        errors = errors.float()
        return errors[-1] if self.config.feature_error == "last_scale" else errors.mean()
