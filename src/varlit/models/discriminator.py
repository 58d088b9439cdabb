"""Discriminators of stage 1: networks that tell reconstructions from images, patch by patch."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from varlit.errors import UserError
from varlit.models.config import GROUP_NORM_GROUPS, PlainConfig


@dataclass(frozen=True)
class DiscriminatorConfig(PlainConfig):
    """Shape of the discriminator; without effect where the loss has disc_weight 0."""

    kind: Literal["patch"] = "patch"
    """Architecture; `patch` is the PatchGAN of pix2pix and VQGAN."""
    channels: int = 64
    """Width after the first convolution, a multiple of 32; doubles up to eightfold."""
    num_layers: int = 3
    """Convolutions of stride 2; images need at least 3 * 2 ** num_layers px."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.channels % GROUP_NORM_GROUPS:
            raise UserError(
                f"discriminator.channels must be a multiple of {GROUP_NORM_GROUPS} (group norm); "
                f"got {self.channels}"
            )
        if self.num_layers < 1:
            raise UserError(f"discriminator.num_layers must be at least 1; got {self.num_layers}")


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches: 70x70 px with three layers (Isola et al. 2017, pix2pix).

    Group norm in place of batch norm: nothing to synchronise between processes, the same in
    train and eval mode, and real and fake images of one batch do not leak into each other.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = [_conv(3, widths[0], stride=2), nn.LeakyReLU(0.2, inplace=True)]
        for i, (width_in, width_out) in enumerate(pairwise(widths), start=1):
            layers += [
                _conv(width_in, width_out, stride=2 if i < config.num_layers else 1),
                nn.GroupNorm(GROUP_NORM_GROUPS, width_out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers, _conv(widths[-1], 1, stride=1))

    @property
    def minimum_side_px(self) -> int:
        """Smallest image side that leaves a patch to judge."""
        # Two convolutions of stride 1 each take a pixel from what the strided ones leave.
        return int(3 * 2**self.config.num_layers)

    def check_image_size(self, side_px: int) -> None:
        """Refuse images that leave no patch to judge.

        Raises:
            UserError: With the number of layers that would fit.
        """
        if side_px >= self.minimum_side_px:
            return
        fewer = range(1, self.config.num_layers)
        fitting = max((n for n in fewer if 3 * 2**n <= side_px), default=0)
        remedy = f"set discriminator.num_layers {fitting}" if fitting else "set disc_weight 0"
        raise UserError(
            f"a patch discriminator of {self.config.num_layers} layers needs images of at least "
            f"{self.minimum_side_px} px; got {side_px} px: {remedy}"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]; large = taken for real."""
        self.check_image_size(min(images.shape[-2:]))
        logits: Tensor = self.layers(images)
        return logits


# New kinds register here; each is built from the config alone and gives logits of any shape.
_KINDS: dict[str, type[PatchDiscriminator]] = {"patch": PatchDiscriminator}


def build_discriminator(config: DiscriminatorConfig) -> PatchDiscriminator:
    """The discriminator that a config describes, freshly initialised.

    Raises:
        UserError: If the kind is unknown.
    """
    if config.kind not in _KINDS:
        raise UserError(f"discriminator.kind must be one of {list(_KINDS)}; got {config.kind!r}")
    return _KINDS[config.kind](config)


def _conv(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=4, stride=stride, padding=1)
    nn.init.normal_(conv.weight, 0.0, 0.02)  # pix2pix and DCGAN
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
