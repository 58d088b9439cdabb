"""Small heads over a frozen DINO transformer: the discriminator of StyleGAN-T and of VAR."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.models.config import GROUP_NORM_GROUPS
from varlit.models.discriminator_config import Discriminator, DiscriminatorConfig
from varlit.models.spectral import SpectralConv1d
from varlit.models.vision_transformer import FrozenViT

TAPPED_BLOCKS = (2, 5, 8, 11)
KERNEL_TOKENS = 9
# ImageNet's mean and deviation, for images in 0..1, which DINO was trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoDiscriminator(Discriminator):
    """Judges every token of a frozen ViT-S/16, before its blocks and after blocks 2, 5, 8, 11.

    The design is StyleGAN-T's (Sauer et al. 2023) in the form that VAR's authors trained their
    tokenizer with (vaex). The trunk sees a crop in one of two training passes, chosen by torch's
    CPU generator, and else the whole image; in eval mode always the whole image.

    Group norm in place of vaex's synchronised batch norm. Batch norm would tie an image's logits
    to its batch: real and fake share a pass, so one would leak into the other, the generator's
    pass over fakes alone would be another function than the discriminator's over both, and every
    pass would have to be synchronised between processes. Vaex itself offers group norm, too.

    The trunk is in no state dict, never trained or averaged, and follows `.to()`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = FrozenViT(config.trunk, config.weights)
        self.tapped_blocks = tuple(i for i in TAPPED_BLOCKS if i < self.trunk.depth)
        num_heads = len(self.tapped_blocks) + 1
        self.heads = nn.ModuleList(TokenHead(self.trunk.width) for _ in range(num_heads))
        for name, value in (("mean", MEAN), ("std", STD)):
            shaped = torch.tensor(value).view(1, 3, 1, 1)
            self.register_buffer(name, shaped, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the trunk along wherever `.to()` and its kin move this module."""
        self.trunk.move(fn)
        return super()._apply(fn, recurse)

    @property
    def minimum_side_px(self) -> int:
        """Side of one patch; smaller images than the trunk's are enlarged for it."""
        return self.trunk.patch_px

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_heads * L) of images (B, 3, H, W) in [-1, 1]; large = taken for real."""
        self.check_image_size(min(images.shape[-2:]))
        with torch.autocast(images.device.type, enabled=False):
            x = (self._resized(images.to(self.mean.dtype)) + 1) / 2
            x = (x - self.mean) / self.std
        logits = []
        for head, tokens in zip(
            self.heads, self.trunk.token_maps(x, self.tapped_blocks), strict=True
        ):
            # The class token, which knows the whole image, is added to every other.
            logits.append(head((tokens[:, 1:] + tokens[:, :1]).transpose(1, 2)))
        return torch.cat(logits, dim=1)

    def _resized(self, images: Tensor) -> Tensor:
        """Bring images to the trunk's side: one crop or area average for the whole batch."""
        side, (height, width) = self.trunk.side_px, images.shape[-2:]
        if (height, width) == (side, side):
            return images
        if min(height, width) < side:
            return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
        if self.training and torch.rand(()).item() < 0.5:
            top = int(torch.randint(height - side + 1, ()).item())
            left = int(torch.randint(width - side + 1, ()).item())
            return images[..., top : top + side, left : left + side]
        return F.interpolate(images, (side, side), mode="area")


class TokenHead(nn.Module):
    """A 1x1 block, a residual block over nine neighbours, one logit a token.

    The sequence of tokens is row-major and taken as a ring.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = _block(width, 1)
        self.neighbours = _block(width, KERNEL_TOKENS)
        self.logit = SpectralConv1d(width, 1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, C, L) -> (B, L)."""
        h = self.point(tokens)
        h = (h + self.neighbours(h)) * math.sqrt(0.5)
        logits: Tensor = self.logit(h).squeeze(1)
        return logits


def _block(width: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        SpectralConv1d(width, width, kernel_size),
        nn.GroupNorm(GROUP_NORM_GROUPS, width, eps=1e-6),
        nn.LeakyReLU(0.2, inplace=True),
    )
