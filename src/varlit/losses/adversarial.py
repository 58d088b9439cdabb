"""The adversarial game of stage 1 as small pure functions of the discriminator's logits.

The step that plays it lives in training: the generator's loss goes through a discriminator with
detached parameters, the discriminator's loss sees a detached reconstruction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

AdversarialKind = Literal["hinge", "nonsaturating"]


def generator_loss(logits_fake: Tensor, kind: AdversarialKind = "hinge") -> Tensor:
    """What the autoencoder pays for reconstructions that the discriminator recognises.

    Args:
        logits_fake: Logits of reconstructions, any shape; large = taken for real.
        kind: `hinge` (-mean) or `nonsaturating` (-log sigmoid).
    """
    logits_fake = logits_fake.float()
    if kind == "hinge":
        return -logits_fake.mean()
    return F.softplus(-logits_fake).mean()


def discriminator_loss(
    logits_real: Tensor, logits_fake: Tensor, kind: AdversarialKind = "hinge"
) -> Tensor:
    """What the discriminator pays, as the *sum* of the real and the fake half.

    vaex, the trainer of VAR's authors, sums; taming-transformers takes half of the sum, so a
    weight or a learning rate from there is not comparable.
    """
    logits_real, logits_fake = logits_real.float(), logits_fake.float()
    if kind == "hinge":
        return F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


class LeCam(nn.Module):
    """Keeps the discriminator's logits near moving averages of the other side.

    Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data",
    equation 3, one-sided as in the authors' code. The averages are buffers, hence checkpointed,
    equal on all processes, and free of the bias of their start at zero (as Adam's); before the
    first update the penalty is zero.
    """

    mean_real: Tensor
    mean_fake: Tensor
    gathered: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))
        # The moving average of 1: how much weight the averages have gathered since their start.
        self.register_buffer("gathered", torch.zeros(()))

    @torch.no_grad()
    def update(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Move the averages towards this step's mean logits, over all processes."""
        means = torch.stack([logits_real.float().mean(), logits_fake.float().mean()])
        mean_real, mean_fake = mean_over_ranks(means)
        self.mean_real.lerp_(mean_real, 1 - self.decay)
        self.mean_fake.lerp_(mean_fake, 1 - self.decay)
        self.gathered.lerp_(torch.ones_like(self.gathered), 1 - self.decay)

    def penalty(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Squared distances of real logits above the fake average and the reverse, a scalar."""
        gathered = self.gathered.clamp(min=1e-12)
        above = F.relu(logits_real.float() - self.mean_fake / gathered).square().mean()
        below = F.relu(self.mean_real / gathered - logits_fake.float()).square().mean()
        return (above + below) * (self.gathered > 0)


def adaptive_weight(
    reconstruction: Tensor,
    nll_grad: Tensor,
    gan_grad: Tensor,
    last_layer: nn.Parameter,
    minimum: float,
    maximum: float,
) -> Tensor:
    """Ratio of both losses' gradient norms at the decoder's last layer.

    VQGAN (Esser et al. 2021), equation 7, with the clamp of vaex. The gradients are averaged over
    processes before their norms are taken, so it is the weight of the whole batch on any number
    of them.

    Args:
        reconstruction: What the decoder gave (B, 3, H, W); its graph is kept.
        nll_grad: Gradient of the reconstruction loss with respect to it.
        gan_grad: The same of the adversarial loss.
        last_layer: `VQVAE.last_layer`.
        minimum: Lower bound.
        maximum: Upper bound.

    Returns:
        Detached fp32 scalar in [minimum, maximum].
    """
    gradients = [
        torch.autograd.grad(reconstruction, last_layer, grad_outputs=grad, retain_graph=True)[0]
        for grad in (nll_grad, gan_grad)
    ]
    nll, gan = mean_over_ranks(torch.stack(gradients).float()).flatten(1).norm(dim=1)
    return (nll / (gan + 1e-6)).clamp(minimum, maximum).detach()


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over all processes; the value itself in a single one. Every process must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()
