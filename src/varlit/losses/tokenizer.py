"""The objective of stage 1: pixels, perception, codebook, and the weight of the adversary.

Everything is fp32 with autocast off. Every start is a share of training, so that a recipe keeps
its meaning at another batch size; defaults are those of vaex, the trainer of VAR's authors.
"""

import warnings
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.losses.adversarial import (
    AdversarialKind,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from varlit.losses.perceptual import PerceptualLoss, PerceptualNet
from varlit.models.config import PlainConfig
from varlit.models.vqvae import TokenizerOutput


@dataclass(frozen=True)
class TokenizerLossConfig(PlainConfig):
    """Weights of the tokenizer's objective; the defaults are VAR's (vaex)."""

    l1_weight: float = 0.2
    """Weight of the mean absolute error."""
    l2_weight: float = 1.0
    """Weight of the mean squared error."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS; 0 = off, nothing is loaded or downloaded."""
    perceptual_net: PerceptualNet = "vgg"
    """Trunk of LPIPS."""
    perceptual_weights: str | None = None
    """File with the trunk's weights; default $VARLIT_LPIPS_<NET>, then torchvision's download."""
    codebook_weight: float = 1.0
    """Weight of pulling codes to features, a mean over scales."""
    commitment_weight: float = 0.25
    """Weight of pulling features to codes (beta), a mean over scales."""
    disc_weight: float = 0.4
    """Weight of the adversarial loss; 0 = no discriminator."""
    adaptive_weight: bool = True
    """Balance the adversarial gradient against the reconstruction's at the decoder's last layer."""
    adaptive_min: float = 0.015
    """Lower bound of the adaptive weight."""
    adaptive_max: float = 1e4
    """Upper bound of the adaptive weight."""
    disc_start: float = 0.2
    """Share of training after which the discriminator starts."""
    disc_warmup: float = 0.02
    """Share of training over which the adversarial weight then rises linearly."""
    disc_loss: AdversarialKind = "hinge"
    """Form of the adversarial loss."""
    lecam_weight: float = 0.001
    """Weight of the LeCam regulariser of the discriminator; 0 = off."""
    lecam_decay: float = 0.999
    """Decay of LeCam's moving averages of the logits."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and not value >= 0:
                raise UserError(f"loss.{field.name} must not be negative; got {value}")
        if self.disc_start > 1:
            raise UserError(
                f"loss.disc_start is a share of training between 0 and 1; got {self.disc_start}. "
                "Divide the step by the number of steps, or set disc_weight 0 for no discriminator"
            )
        if self.adaptive_min > self.adaptive_max:
            raise UserError(
                f"loss.adaptive_min {self.adaptive_min} is above adaptive_max {self.adaptive_max}"
            )
        if self.lecam_decay >= 1:
            raise UserError(f"loss.lecam_decay must be below 1; got {self.lecam_decay}")
        if self.perceptual_weights and not self.perceptual_weight:
            warnings.warn(
                "loss.perceptual_weights is ignored, because perceptual_weight is 0", stacklevel=2
            )


@dataclass(frozen=True)
class ReconstructionTerms:
    """The non-adversarial terms of a batch, all scalars in fp32, unweighted but for two sums."""

    total: Tensor  # weighted sum of everything below
    reconstruction: Tensor  # weighted l1, l2 and perceptual: what the adversary is balanced against
    l1: Tensor
    l2: Tensor
    perceptual: Tensor  # 0 where it is off
    codebook: Tensor
    commitment: Tensor


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
            codebook = output.codebook_loss.float().mean()
            commitment = output.commitment_loss.float().mean()
            total = (
                reconstruction
                + config.codebook_weight * codebook
                + config.commitment_weight * commitment
            )
        return ReconstructionTerms(total, reconstruction, l1, l2, perceptual, codebook, commitment)

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

    def generator_term(self, logits_fake: Tensor) -> Tensor:
        """Unweighted adversarial loss of the autoencoder; weigh it by `generator_weight`."""
        return generator_loss(logits_fake, self.config.disc_loss)

    def balance(
        self, reconstruction: Tensor, generator: Tensor, last_layer: nn.Parameter
    ) -> Tensor:
        """The adaptive weight, or 1 where it is switched off. Detached scalar.

        Args:
            reconstruction: `ReconstructionTerms.reconstruction`, with its graph.
            generator: `generator_term(...)`, with its graph.
            last_layer: `VQVAE.last_layer`.
        """
        config = self.config
        if not config.adaptive_weight:
            return generator.new_ones(())
        return adaptive_weight(
            reconstruction, generator, last_layer, config.adaptive_min, config.adaptive_max
        )

    def generator_weight(self, progress: float, balance: Tensor) -> Tensor:
        """What `generator_term` is multiplied by: disc_weight * warm-up * balance."""
        return self.config.disc_weight * self.disc_strength(progress) * balance

    def discriminator_term(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Loss of the discriminator with LeCam, whose averages move in train mode only.

        Args:
            logits_real: Logits of images, any shape.
            logits_fake: Logits of *detached* reconstructions.
        """
        loss = discriminator_loss(logits_real, logits_fake, self.config.disc_loss)
        if self.lecam is None:
            return loss
        # Penalise against the steps before: this step's own mean would be no anchor.
        loss = loss + self.config.lecam_weight * self.lecam.penalty(logits_real, logits_fake)
        if self.training:
            self.lecam.update(logits_real, logits_fake)
        return loss
