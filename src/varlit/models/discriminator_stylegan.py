"""A residual discriminator that blurs before it halves, after StyleGAN2's."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.models.config import GROUP_NORM_GROUPS
from varlit.models.discriminator_config import DiscriminatorConfig, HalvingDiscriminator

BLUR_TAPS = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's binomial filter
STD_GROUP = 4  # images whose deviation minibatch_std shows, StyleGAN2's default


class StyleGANDiscriminator(HalvingDiscriminator):
    """Residual blocks with anti-aliased downsampling, and logits for every cell that is left.

    From StyleGAN2 (Karras et al. 2020) the blocks, the blur and the 1 / sqrt(2) of each sum; from
    the tokenizer trainers TiTok and MaskBit the group norm and the map of logits, which needs no
    fixed image size.
    """

    cells_left = 2

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        self.stem = _conv(3, widths[0], kernel_size=3)
        self.blocks = nn.ModuleList(DownBlock(*pair) for pair in pairwise(widths))
        width = widths[-1]
        self.head = nn.Sequential(
            _conv(width + config.minibatch_std, width, kernel_size=3),
            nn.LeakyReLU(0.2, inplace=True),
            _conv(width, 1, kernel_size=1, gain=1.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]; large = taken for real."""
        self.check_image_size(min(images.shape[-2:]))
        h = F.leaky_relu(self.stem(images), 0.2)
        for block in self.blocks:
            h = block(h)
        if self.config.minibatch_std:
            h = append_minibatch_std(h)
        logits: Tensor = self.head(h)
        return logits


class DownBlock(nn.Module):
    """Two convolutions beside a 1x1 one, both halving the side.  # (B, C, H, W) -> (B, D, h, w)"""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv(width_in, width_in, kernel_size=3),
            nn.GroupNorm(GROUP_NORM_GROUPS, width_in),
            nn.LeakyReLU(0.2, inplace=True),
            BlurPool(width_in),
            _conv(width_in, width_out, kernel_size=3),
            nn.GroupNorm(GROUP_NORM_GROUPS, width_out),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.skip = nn.Sequential(
            BlurPool(width_in), _conv(width_in, width_out, kernel_size=1, gain=1.0, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the branch and the skip, of the variance of each."""
        summed: Tensor = self.branch(x) + self.skip(x)
        return summed * math.sqrt(0.5)


class BlurPool(nn.Module):
    """Halve the side after a low-pass filter, so that a shifted image gives shifted features.

    Zhang 2019, "Making Convolutional Networks Shift-Invariant Again". The filter is a constant
    and no part of checkpoints.
    """

    taps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor(BLUR_TAPS)
        taps = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("taps", taps.expand(channels, 1, -1, -1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        # Mirrored borders: zeros would draw a frame that tells nothing about the image.
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.taps, stride=2, groups=x.shape[1])


def append_minibatch_std(x: Tensor) -> Tensor:
    """One more channel: the mean deviation over groups of neighbours.  # (B, C + 1, h, w)

    Karras et al. 2018. Groups are neighbours in the batch, so that with real images first and
    fake ones after, groups are of one sort where four divides the number of each.
    """
    group = math.gcd(len(x), STD_GROUP)
    groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (-1, group))
    variance = groups.var(dim=1, correction=0)
    std = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3)).repeat_interleave(group)  # (B,)
    return torch.cat((x, std.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])), dim=1)


def _conv(
    width_in: int, width_out: int, kernel_size: int, gain: float = math.sqrt(2), bias: bool = True
) -> nn.Conv2d:
    conv = nn.Conv2d(width_in, width_out, kernel_size, padding=kernel_size // 2, bias=bias)
    # Unit variance through the leaky ReLU (He et al. 2015), where StyleGAN2 scales at run time.
    nn.init.normal_(conv.weight, 0.0, gain / math.sqrt(width_in * kernel_size**2))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
