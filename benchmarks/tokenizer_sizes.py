"""Stage 1 at the sizes that are benchmarked, built without a download or a data set."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlit.losses.perceptual import PerceptualNet
from varlit.losses.tokenizer import TokenizerLossConfig
from varlit.models.config import TokenizerConfig
from varlit.models.discriminator import DiscriminatorConfig
from varlit.training.optim import TokenizerOptimConfig
from varlit.training.tokenizer import TokenizerModule

SEED = 0


@dataclass(frozen=True)
class Size:
    """Networks and a batch."""

    tokenizer: TokenizerConfig
    discriminator: DiscriminatorConfig
    perceptual_net: PerceptualNet
    batch_size: int


SIZES = {
    # For the tests.
    "tiny": Size(
        TokenizerConfig(
            channels=32,
            channel_multipliers=(1, 1, 1),
            num_res_blocks=1,
            codebook_size=64,
            codebook_dim=8,
            scales=(1, 2, 5),
        ),
        DiscriminatorConfig(channels=32, num_layers=2),
        "squeeze",
        batch_size=2,
    ),
    # The networks of conf/tokenizer/photos64.yaml, which two cores train in minutes.
    "photos64": Size(
        TokenizerConfig(
            channels=32,
            channel_multipliers=(1, 1, 2, 2),
            num_res_blocks=1,
            codebook_size=512,
            codebook_dim=16,
            scales=(1, 2, 3, 4, 6, 8),
            norm_groups=8,
        ),
        DiscriminatorConfig(channels=32, num_layers=2),
        "squeeze",
        batch_size=8,
    ),
    # The tokenizer of conf/tokenizer/imagenet256.yaml on one card, with PatchGAN: the DINO of the
    # recipe, its distortions and its second judgement of each batch (bCR) are not timed.
    "imagenet256": Size(TokenizerConfig(), DiscriminatorConfig(), "vgg", batch_size=16),
}


def random_images(size: Size, batch_size: int, device: torch.device, nhwc: bool) -> Tensor:
    """Noise in [-1, 1]: a step takes as long on it as on a photograph.  # (B, 3, H, W)"""
    generator = torch.Generator().manual_seed(SEED)
    side = size.tokenizer.image_size
    images = torch.rand(batch_size, 3, side, side, generator=generator) * 2 - 1
    layout = torch.channels_last if nhwc else torch.contiguous_format
    return images.to(device, memory_format=layout)


def build_module(size: Size, with_perceptual: bool, with_gan: bool, nhwc: bool) -> TokenizerModule:
    """Stage 1 with the recipe's losses, the discriminator playing from the first step.

    Weights are the same at every call. LPIPS runs on a random trunk, which takes as long as the
    trained one. LeCam, a few scalars, is off.
    """
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        trunk = Path(folder) / "trunk.pth"
        lpips: dict[str, Any] = {"perceptual_weight": 0.0}
        if with_perceptual:
            torch.save(random_trunk(size.perceptual_net), trunk)
            lpips = {"perceptual_net": size.perceptual_net, "perceptual_weights": str(trunk)}
        gan: dict[str, Any] = {"disc_weight": 0.0}
        if with_gan:
            gan = {"disc_start": 0.0, "disc_warmup": 0.0, "lecam_weight": 0.0}
        module = TokenizerModule(
            tokenizer=size.tokenizer,
            loss=TokenizerLossConfig.of(lpips | gan),
            discriminator=size.discriminator,
            optim=TokenizerOptimConfig(schedule="constant", warmup=0.0),
            image_size=size.tokenizer.image_size,
        )
    layout = torch.channels_last if nhwc else torch.contiguous_format
    # Only weights of four dimensions have a layout; torch leaves the others alone.
    return module.to(memory_format=layout)


def random_trunk(net: PerceptualNet) -> dict[str, Tensor]:
    """Weights in the form of torchvision's file, drawn so that activations keep their size."""
    from torchvision import models

    build = {"vgg": models.vgg16, "alex": models.alexnet, "squeeze": models.squeezenet1_1}[net]
    with torch.device("meta"):
        shapes = build(weights=None).features.state_dict()
    weights = {}
    for name, shape in shapes.items():
        fan_in = shape.numel() // len(shape)
        drawn = torch.randn(shape.shape) * (2 / fan_in) ** 0.5
        weights[f"features.{name}"] = drawn if shape.ndim == 4 else torch.zeros(shape.shape)
    return weights
