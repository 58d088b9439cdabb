"""Convolutional encoder and decoder of VQGAN (Esser et al. 2021) in the shape that VAR uses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from varlit.models.config import TokenizerConfig


class NormSiLU(nn.GroupNorm):
    """Group norm, then SiLU.

    `fused` says how both are computed, not what; `varlit.models.decoder_speed` sets it.
    """

    fused: Callable[[Tensor, int, Tensor, Tensor, float], Tensor] | None = None

    def __init__(self, channels: int, config: TokenizerConfig) -> None:
        super().__init__(config.norm_groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        if self.fused is not None:
            return self.fused(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.silu(super().forward(x), inplace=True)


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, twice, around a shortcut.  # (B, C, h, w) -> (B, C', h, w)"""

    def __init__(self, channels_in: int, channels_out: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm1, self.conv1 = NormSiLU(channels_in, config), _conv(channels_in, channels_out)
        self.norm2, self.conv2 = NormSiLU(channels_out, config), _conv(channels_out, channels_out)
        self.dropout = nn.Dropout(config.dropout)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + F(x)."""
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.dropout(self.norm2(h)))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions.  # (B, C, h, w) -> (B, C, h, w)"""

    def __init__(self, channels: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + attention(x), softmax scale C^-0.5."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h*w, 3C)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # (B, h*w, C)
        return x + self.projection(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side by a strided convolution padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repetition, then smooth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Sequential):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: TokenizerConfig) -> None:
        super().__init__(
            ResidualBlock(channels, channels, config),
            SpatialAttention(channels, config),
            ResidualBlock(channels, channels, config),
        )


def _level(widths: list[int], config: TokenizerConfig, attend: bool) -> list[nn.Module]:
    """Residual blocks through `widths`, each followed by attention where `attend`."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(ResidualBlock(before, after, config))
        if attend:
            layers.append(SpatialAttention(after, config))
    return layers


class Encoder(nn.Module):
    """Images (B, 3, H, W) to features (B, C, h, w), h = H / stride."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        lowest = len(widths) - 1
        self.conv_in = _conv(3, config.channels)
        self.levels, self.downsamples = nn.ModuleList(), nn.ModuleList()
        before = config.channels
        for i, width in enumerate(widths):
            path = [before] + [width] * config.num_res_blocks
            self.levels.append(nn.Sequential(*_level(path, config, i == lowest)))
            if i < lowest:
                self.downsamples.append(Downsample(width))
            before = width
        self.middle = Middle(before, config)
        self.norm_out = NormSiLU(before, config)
        self.conv_out = _conv(before, config.codebook_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1]."""
        h = self.conv_in(images)
        for i, level in enumerate(self.levels):
            h = level(h)
            if i < len(self.downsamples):
                h = self.downsamples[i](h)
        return self.conv_out(self.norm_out(self.middle(h)))


class Decoder(nn.Module):
    """Features (B, C, h, w) to images (B, 3, H, W), not yet clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]
        before = widths[0]
        self.conv_in = _conv(config.codebook_dim, before)
        self.middle = Middle(before, config)
        self.levels, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            path = [before] + [width] * (config.num_res_blocks + 1)
            self.levels.append(nn.Sequential(*_level(path, config, i == 0)))
            if i < len(widths) - 1:
                self.upsamples.append(Upsample(width))
            before = width
        self.norm_out = NormSiLU(before, config)
        self.conv_out = _conv(before, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Decode features of codes."""
        h = self.middle(self.conv_in(features))
        for i, level in enumerate(self.levels):
            h = level(h)
            if i < len(self.upsamples):
                h = self.upsamples[i](h)
        return self.conv_out(self.norm_out(h))
