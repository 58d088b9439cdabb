"""The stage-1 network: encoder, multi-scale quantizer, decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.models.autoencoder import Decoder, Encoder
from varlit.models.config import Order, TokenizerConfig
from varlit.models.initialization import shapes_only
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.ops.quantize import strict_fp32


@dataclass(frozen=True)
class TokenizerOutput:
    """A differentiable pass through the tokenizer."""

    reconstruction: Tensor  # (B, 3, H, W), not clamped
    tokens: Tensor  # (B, L) int64
    codebook_loss: Tensor  # (K,) unweighted
    commitment_loss: Tensor  # (K,) unweighted
    searched: Tensor  # (B, L, C) fp32, detached: the vectors whose nearest codes the tokens are
    entropy_loss: Tensor | None = None  # unweighted scalar, where it was asked for


class VQVAE(nn.Module):
    """Multi-scale VQ autoencoder; images are float (B, 3, H, W) in [-1, 1].

    >>> tokenizer = VQVAE(TokenizerConfig(channels=32, channel_multipliers=(1, 1), scales=(1, 4)))
    >>> tokenizer.encode(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 17])
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.codebook_dim
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.post_quant_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.quantizer = MultiScaleQuantizer(config)
        self.scales = self.quantizer.scales

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's output convolution, where the GAN weight is balanced."""
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def features(self, images: Tensor) -> Tensor:
        """Latent maps of images before quantization.  # (B, C, h, w) fp32

        Raises:
            UserError: If the images are not of this tokenizer's size.
        """
        size = self.config.image_size
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                "images must be floats (B, 3, H, W) in -1..1; got "
                f"{images.dtype} of shape {list(images.shape)}"
            )
        if images.shape[-2:] != (size, size):
            raise UserError(
                f"this tokenizer takes {size}x{size} px images; got "
                f"{images.shape[-1]}x{images.shape[-2]}. Resize or crop them first"
            )
        h = self.encoder(images)
        with torch.autocast(h.device.type, enabled=False):
            return self.quant_conv(h.float())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Token pyramids of images, in strict fp32 so that they are reproducible.  # (B, L)"""
        self._check_fp32()
        with strict_fp32(images.device):
            wide = images.float() if images.is_floating_point() else images
            return self.quantizer.encode(self.features(wide))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images of token pyramids (B, L), clamped to [-1, 1].  # (B, 3, H, W)"""
        return self.decode_features(self.quantizer.decode(tokens))

    @torch.no_grad()
    def decode_prefix(self, tokens: Tensor, num_scales: int) -> Tensor:
        """Images from the first `num_scales` token maps only.  # (B, 3, H, W)

        Raises:
            UserError: If there are not so many.
        """
        if not 1 <= num_scales <= self.scales.num_scales:
            raise UserError(f"num_scales must lie in 1..{self.scales.num_scales}; got {num_scales}")
        return self.decode_features(self.quantizer.decode(tokens, num_scales))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode.  # (B, 3, H, W)"""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def teacher_inputs(self, tokens: Tensor, order: Order = "next_scale") -> Tensor:
        """What the transformer sees under teacher forcing.  # (B, L - l_0, C)"""
        return self.quantizer.teacher_inputs(tokens, order)

    def with_scales(self, scales: Sequence[int]) -> Self:
        """The same weights with another schedule, such as that of 512 px; nothing is copied.

        Args:
            scales: Sides of the token maps, coarse to fine.

        Raises:
            UserError: If there is one phi per scale, so that the weights do not fit.
        """
        config = replace(self.config, scales=tuple(scales))
        with shapes_only():
            other = type(self)(config)
        if len(other.quantizer.phis) != len(self.quantizer.phis):
            raise UserError(
                f"these scales need {len(other.quantizer.phis)} phi convolutions and the tokenizer "
                f"has {len(self.quantizer.phis)}; take {self.scales.num_scales} scales"
            )
        other.load_state_dict(self.state_dict(), assign=True)
        if not self.last_layer.requires_grad:
            other.requires_grad_(False)
        return other.train(self.training)

    def decode_features(self, f_hat: Tensor) -> Tensor:
        """Images of quantized latent maps, clamped to [-1, 1].  # (B, 3, H, W)"""
        self._check_fp32()
        return self._decode(f_hat).float().clamp(-1, 1)

    def forward(
        self,
        images: Tensor,
        num_scales: Tensor | None = None,
        entropy_temperature: float | None = None,
    ) -> TokenizerOutput:
        """Reconstruct images differentiably, for training.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            num_scales: Quantizer dropout: how many scales each image keeps, (B,) in 1..K.
            entropy_temperature: Compute `entropy_loss` at this temperature.
        """
        quantized = self.quantizer(self.features(images), num_scales, entropy_temperature)
        return TokenizerOutput(
            reconstruction=self._decode(quantized.f_hat),
            tokens=quantized.tokens,
            codebook_loss=quantized.codebook_loss,
            commitment_loss=quantized.commitment_loss,
            searched=quantized.searched,
            entropy_loss=quantized.entropy_loss,
        )

    def _check_fp32(self) -> None:
        if self.last_layer.dtype != torch.float32:
            raise UserError(
                f"a tokenizer's weights must stay in float32, got {self.last_layer.dtype}: in half "
                "precision it finds other tokens. Undo it with .float(); for speed, decode under "
                "torch.autocast"
            )

    def _decode(self, f_hat: Tensor) -> Tensor:
        with torch.autocast(f_hat.device.type, enabled=False):
            h = self.post_quant_conv(f_hat.float())
        return self.decoder(h)
