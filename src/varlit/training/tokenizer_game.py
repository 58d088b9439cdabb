"""One pass of the adversarial game, both players at once, and the sums over a step's parts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from varlit.losses.adversarial import mean_over_ranks
from varlit.losses.tokenizer import ReconstructionTerms, TokenizerLoss
from varlit.models.discriminator import Discriminator
from varlit.models.vqvae import TokenizerOutput


@dataclass(frozen=True)
class GamePass:
    """The objective of both players, ready for one backward pass, and what to log of it."""

    objective: Tensor  # its gradients are those of everything; its value means nothing
    value: Tensor  # all weighted terms, detached
    scalars: dict[str, Tensor]


def play(
    loss: TokenizerLoss,
    discriminator: Discriminator,
    output: TokenizerOutput,
    images: Tensor,
    terms: ReconstructionTerms,
    last_layer: nn.Parameter,
    progress: float,
    step: int,
) -> GamePass:
    """All losses of a step from one reconstruction, for one backward pass.

    The generator's goes through the discriminator with detached weights, the discriminator's
    through a detached reconstruction: each learns from its own loss alone. What pulls at the
    reconstruction is computed once, weighed, and handed to the decoder: the adaptive weight costs
    no second pass through LPIPS and the discriminator, whose activations are free by then.

    Args:
        loss: The objective.
        discriminator: The judge.
        output: A differentiable pass of the tokenizer.
        images: What it was given (B, 3, H, W).
        terms: The other terms of that pass.
        last_layer: `VQVAE.last_layer`.
        progress: Share of training that is done, 0..1.
        step: Optimizer steps done.
    """
    frozen = {k: v.detach() for k, v in discriminator.named_parameters()}
    drawn = output.reconstruction
    shown = loss.disc_view(drawn, progress)
    generator = loss.generator_term(functional_call(discriminator, frozen, (shown,)))
    (nll_pull,) = torch.autograd.grad(terms.reconstruction, drawn)
    (gan_pull,) = torch.autograd.grad(generator, drawn)
    balance = loss.balance(drawn, nll_pull, gan_pull, last_layer)
    weight = loss.generator_weight(progress, balance)
    pull = nll_pull.float() + weight * gan_pull.float()
    pair = torch.cat((images, drawn.detach().to(images.dtype)))
    logits = discriminator(loss.disc_view(pair, progress)).float()
    real, fake = logits.chunk(2)
    judged = loss.discriminator_term(real, fake)
    penalties = loss.disc_penalties(discriminator, pair, logits, progress, step)
    judged_in_all = judged + sum(penalties.values())
    scalars = {
        "loss/adversarial": generator,
        "gan/disc_loss": judged,
        "gan/adaptive_weight": balance,
        "gan/generator_weight": weight,
        "gan/logits_real": real.mean(),
        "gan/logits_fake": fake.mean(),
        **{f"gan/{name}": value for name, value in penalties.items()},
    }
    return GamePass(
        objective=(drawn.float() * pull).sum() + terms.codes + judged_in_all,
        value=(terms.total + weight * generator + judged_in_all).detach(),
        scalars=scalars,
    )


def reconstruction_scalars(terms: ReconstructionTerms) -> dict[str, Tensor]:
    """What to log of the terms that are no game."""
    names = ("l1", "l2", "perceptual", "codebook", "commitment", "entropy")
    return {f"loss/{name}": getattr(terms, name) for name in names}


class StepSums:
    """What the parts of one optimizer step leave for its end; never waits for the device."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin the next step."""
        self._sums: dict[str, Tensor] = {}
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, scalars: dict[str, Tensor], tokens: Tensor, searched: Tensor) -> None:
        """Add a part's scalars, the same ones in every part, and its tokens and their vectors."""
        self._rows.append((tokens, searched))
        for name, value in scalars.items():
            before = self._sums.get(name)
            self._sums[name] = value.detach() if before is None else before + value.detach()

    def means(self) -> dict[str, Tensor]:
        """Means over the parts so far."""
        return {name: value / len(self._rows) for name, value in self._sums.items()}

    def means_over_ranks(self) -> dict[str, Tensor]:
        """Means over the parts so far and over all processes; every one of them must call it."""
        means = self.means()
        told = mean_over_ranks(torch.stack([value.float() for value in means.values()]))
        return dict(zip(means, told, strict=True))

    def looked_up(self) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and their vectors (B, L, C) of all parts."""
        tokens, searched = zip(*self._rows, strict=True)
        return torch.cat(tokens), torch.cat(searched)
