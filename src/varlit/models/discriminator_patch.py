"""PatchGAN, the discriminator of pix2pix, VQGAN and LlamaGen."""

from itertools import pairwise

from torch import Tensor, nn

from varlit.models.config import GROUP_NORM_GROUPS
from varlit.models.discriminator_config import DiscriminatorConfig, HalvingDiscriminator


class PatchDiscriminator(HalvingDiscriminator):
    """Judges overlapping patches: 70x70 px with three layers (Isola et al. 2017, pix2pix).

    Group norm in place of batch norm: nothing to synchronise between processes, the same in
    train and eval mode, and real and fake images of one batch do not leak into each other.
    """

    # Two convolutions of stride 1 each take a cell from what the strided ones leave.
    cells_left = 3

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

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]; large = taken for real."""
        self.check_image_size(min(images.shape[-2:]))
        logits: Tensor = self.layers(images)
        return logits


def _conv(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=4, stride=stride, padding=1)
    nn.init.normal_(conv.weight, 0.0, 0.02)  # pix2pix and DCGAN
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
