"""The multi-scale residual quantizer: VAR Algorithms 1 (encode) and 2 (decode) on one step.

Training, caching, sampling and editing all walk the scales through `accumulate` and `next_input`.
Everything runs in strict fp32, whatever the precision around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.config import Order, TokenizerConfig
from varlit.ops.pyramid import enlarge, shrink, to_map, to_sequence
from varlit.ops.quantize import assignment_entropy, nearest_code, strict_fp32
from varlit.ops.scales import Scales


@dataclass(frozen=True)
class Quantized:
    """What the quantizer made of a latent map, ready for the losses."""

    f_hat: Tensor  # (B, C, h, w), straight-through gradient to the input
    tokens: Tensor  # (B, L) int64
    codebook_loss: Tensor  # (K,) mean squared error that moves the codes and phi
    commitment_loss: Tensor  # (K,) the same that moves the encoder
    searched: Tensor  # (B, L, C) fp32, detached: the vectors whose nearest codes the tokens are
    entropy_loss: Tensor | None = None  # scalar, where it was asked for


class MultiScaleQuantizer(nn.Module):
    """One codebook for all scales, a residual pyramid, and phi convolutions that smooth it.

    Cosine search compares directions only, but what is looked up and what the losses move is the
    code itself, with its length, as in official VAR (`using_znorm`). Unit codes would be wrong
    here: the scales add up to the latent map, so a code must say how far to go. The price: of
    codes in one direction a single one is ever found, however long the vector.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.scales = Scales(config.scales)
        self.search = config.search
        self.phi_ratio = config.phi_ratio
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)
        self.phi_index = self.scales.phi_index(config.num_phi)
        dim = config.codebook_dim
        self.phis = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size=3, padding=1) for _ in range(max(self.phi_index) + 1)
        )
        for i in set(range(len(self.phis))) - set(self.phi_index):
            # With fewer scales than phis one is never used; DDP would wait for its gradient.
            self.phis[i].requires_grad_(False)
        # vaex initialises codes uniformly within C^-0.5 / 36.
        bound = dim**-0.5 / 36
        nn.init.uniform_(self.codebook.weight, -bound, bound)

    def accumulate(self, f_hat: Tensor, embedding: Tensor, k: int) -> Tensor:
        """Add scale k's token map to the image so far (Algorithm 2, lines 4 to 6).

        Args:
            f_hat: Sum of the coarser scales (B, C, h, w).
            embedding: Codes of scale k as a map (B, C, h_k, w_k).
            k: Index of the scale, 0 the coarsest.
        """
        # The sampler calls this under autocast, where f_hat must stay what `decode` makes of it.
        with strict_fp32(f_hat.device):
            return f_hat + self._phi(enlarge(embedding, f_hat.shape[-1]), k)

    def next_input(self, f_hat: Tensor, k: int) -> Tensor:
        """What the transformer sees when it predicts scale k + 1.  # (B, l_{k+1}, C)"""
        return to_sequence(shrink(f_hat, self.scales.sides[k + 1]))

    def embed(self, tokens: Tensor, k: int) -> Tensor:
        """Codes of scale k's tokens (B, l_k) as a map.  # (B, C, h_k, w_k)"""
        return to_map(self.codebook(tokens), self.scales.sides[k])

    def empty(self, batch_size: int) -> Tensor:
        """The image before any scale: zeros (B, C, h, w)."""
        weight, side = self.codebook.weight, self.scales.final_side
        return weight.new_zeros(batch_size, weight.shape[1], side, side, dtype=torch.float32)

    @torch.no_grad()
    def encode(self, f: Tensor) -> Tensor:
        """Tokens of latent maps (B, C, h, w), VAR Algorithm 1.  # (B, L) int64"""
        with strict_fp32(f.device):
            residual, maps = f.float().clone(), []
            for k in range(self.scales.num_scales):
                tokens = self.search_codes(residual, k)
                residual -= self._phi(enlarge(self.embed(tokens, k), f.shape[-1]), k)
                maps.append(tokens)
            return self.scales.merge(maps)

    def decode(self, tokens: Tensor, num_scales: int | None = None) -> Tensor:
        """Latent maps from the first `num_scales` scales of (B, L), VAR Algorithm 2.

        Raises:
            UserError: If the tokens are no pyramids of codes.
        """
        self._check_tokens(tokens)
        with strict_fp32(tokens.device):
            f_hat = self.empty(len(tokens))
            for k, part in enumerate(self.scales.split(tokens)[:num_scales]):
                f_hat = self.accumulate(f_hat, self.embed(part, k), k)
            return f_hat

    def teacher_inputs(self, tokens: Tensor, order: Order = "next_scale") -> Tensor:
        """Transformer inputs of all steps but the first, from true tokens (B, L).

        Scale k + 1 sees the sum of scales 0 to k, averaged down to its own side. In raster scan a
        token sees the code of the token before it.

        Returns:
            (B, L - l_0, C) fp32.

        Raises:
            UserError: For a raster scan of more scales than one.
        """
        if order == "raster":
            return self._codes_before(tokens)
        with strict_fp32(tokens.device):
            f_hat, inputs = self.empty(len(tokens)), []
            for k, part in enumerate(self.scales.split(tokens)[:-1]):
                f_hat = self.accumulate(f_hat, self.embed(part, k), k)
                inputs.append(self.next_input(f_hat, k))
            if not inputs:
                return f_hat.new_zeros(len(tokens), 0, f_hat.shape[1])
            return torch.cat(inputs, dim=1)

    def _codes_before(self, tokens: Tensor) -> Tensor:
        """Codes of all tokens but the last.  # (B, L - 1, C)"""
        parts = self.scales.split(tokens)
        if len(parts) != 1:
            raise UserError(
                "order raster scans a single token map; got a tokenizer of scales "
                f"{list(self.scales.sides)}. Take order next_scale"
            )
        codes: Tensor = self.codebook(parts[0][:, :-1])
        return codes.float()

    def forward(
        self,
        f: Tensor,
        num_scales: Tensor | None = None,
        entropy_temperature: float | None = None,
    ) -> Quantized:
        """Quantize with gradients: to the codes and phi by the losses, to `f` straight through.

        The losses compare every partial sum with the whole latent map, as official VAR does.

        Args:
            f: Latent maps (B, C, h, w).
            num_scales: Quantizer dropout: (B,) integers in 1..K, how many scales each image keeps.
                Finer ones add nothing to its `f_hat` and give it no loss, and the scales that it
                keeps weigh K / n, so that `loss.mean()` is the mean over images of each image's
                mean over its own scales. Tokens and `searched` are whole, as without dropout.
            entropy_temperature: Compute `entropy_loss` over all tokens, see `assignment_entropy`.
                Its gradient reaches `f` and the codes, not phi.
        """
        with strict_fp32(f.device):
            f = f.float()
            target = f.detach()
            residual, f_hat = target.clone(), torch.zeros_like(target)
            # Zeros that carry the gradient of what is searched back to the encoder.
            thread = None if entropy_temperature is None else f - target
            shares = None if num_scales is None else self._shares(num_scales)
            maps, searched, codebook_loss, commitment_loss = [], [], [], []
            for k in range(self.scales.num_scales):
                z = self._vectors(residual if thread is None else residual + thread, k)
                tokens = self._nearest(z)
                step = self._phi(enlarge(self.embed(tokens, k), f.shape[-1]), k)
                residual = residual - step.detach()
                share = None if shares is None else shares[k]
                f_hat = f_hat + (step if share is None else step * (share > 0).view(-1, 1, 1, 1))
                maps.append(tokens)
                searched.append(z)
                codebook_loss.append(_mean_square(f_hat, target, share))
                commitment_loss.append(_mean_square(f, f_hat.detach(), share))
            vectors = torch.cat(searched, dim=1)
            return Quantized(
                f_hat=f + (f_hat - f).detach(),
                tokens=self.scales.merge(maps),
                codebook_loss=torch.stack(codebook_loss),
                commitment_loss=torch.stack(commitment_loss),
                searched=vectors.detach(),
                entropy_loss=self._entropy(vectors, entropy_temperature),
            )

    def _entropy(self, vectors: Tensor, temperature: float | None) -> Tensor | None:
        if temperature is None:
            return None
        codes = self.codebook.weight.float()
        return assignment_entropy(vectors.flatten(0, 1), codes, temperature, self.search)

    def _shares(self, num_scales: Tensor) -> Tensor:
        """Weight of each scale in the loss of images that keep `num_scales` (B,).  # (K, B)"""
        total = self.scales.num_scales
        index = torch.arange(total, device=num_scales.device)[:, None]
        return (index < num_scales) * (total / num_scales)

    def _vectors(self, residual: Tensor, k: int) -> Tensor:
        """What is looked up at scale k of a residual (B, C, h, w).  # (B, l_k, C)"""
        return to_sequence(shrink(residual, self.scales.sides[k]))

    @torch.no_grad()
    def _nearest(self, z: Tensor) -> Tensor:
        """Nearest codes of vectors (B, l, C).  # (B, l)"""
        nearest = nearest_code(z.flatten(0, 1), self.codebook.weight.float(), self.search)
        return nearest.view(z.shape[:2])

    def _check_tokens(self, tokens: Tensor) -> None:
        """Refuse what is no (B, L) of codes; the values are looked at on the CPU only."""
        wrong = tokens.dim() != 2 or tokens.is_floating_point()
        if not wrong and tokens.device.type == "cpu" and tokens.numel():
            wrong = bool(tokens.min() < 0 or tokens.max() >= self.codebook.num_embeddings)
        if wrong:
            raise UserError(
                f"tokens must be integers (B, L) in 0..{self.codebook.num_embeddings - 1}; got "
                f"{tokens.dtype} of shape {list(tokens.shape)} in "
                f"{tokens.min().item():g}..{tokens.max().item():g}"
            )

    def search_codes(self, residual: Tensor, k: int) -> Tensor:
        """Nearest codes of a residual (B, C, h, w) at scale k (Algorithm 1, line 5).  # (B, l_k)"""
        return self._nearest(self._vectors(residual, k))

    def _phi(self, h: Tensor, k: int) -> Tensor:
        """Blend a map with its convolution, phi_k of Algorithm 1."""
        return h.lerp(self.phis[self.phi_index[k]](h), self.phi_ratio)


def _mean_square(a: Tensor, b: Tensor, share: Tensor | None) -> Tensor:
    """Mean squared error of maps (B, C, h, w), each image weighted by `share` (B,)."""
    if share is None:
        return F.mse_loss(a, b)
    return ((a - b).square().mean(dim=(1, 2, 3)) * share).mean()
