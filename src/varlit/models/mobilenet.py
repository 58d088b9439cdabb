"""MobileNetV2 1.0 at 224 px: a small real ImageNet classifier.

The weights are TensorFlow's with torchvision's names and batch norm folded into the biases, so
the padding is TensorFlow's too.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.errors import UserError

NAME = "mobilenet_v2"
MOBILENET_FILE = "mobilenet_v2_fp16.pth"
MOBILENET_VARIABLE = "VARLIT_MOBILENET"
INPUT_PX = 224
# Sandler et al. 2018, table 2: expansion, channels, blocks, stride of the first of them.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS, _FEATURES, _CLASSES = 32, 1280, 1000


class MobileNetOutput(NamedTuple):
    """What the network says of a batch."""

    pool: Tensor  # (B, 1280)
    logits: Tensor  # (B, 1000)


def find_mobilenet(weights: str | None = None) -> Path:
    """The file of the weights.

    Raises:
        UserError: If there is none; says which file to put where.
    """
    given = weights or os.environ.get(MOBILENET_VARIABLE)
    if not given:
        raise UserError(
            f"the network {NAME} needs its weights: put the path of {MOBILENET_FILE} in "
            f"${MOBILENET_VARIABLE}, or give it as the weights"
        )
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"no MobileNetV2 weights at {path}; expected the file {MOBILENET_FILE}")
    return path


def load_mobilenet(path: Path) -> MobileNetV2:
    """The network with the weights of a file, which may be in fp16.

    Raises:
        UserError: If the file holds other weights.
    """
    network = MobileNetV2()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        raise UserError(
            f"{path} does not hold MobileNetV2's weights ({reason}); expected torchvision's names "
            f"with batch norm folded into the biases, as in {MOBILENET_FILE}"
        ) from error
    return network


class MobileNetV2(nn.Module):
    """From uint8 images (B, 3, H, W) to 1,280 features and the logits of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_relu6(3, _STEM_CHANNELS, 3, 2)]
        channels = _STEM_CHANNELS
        for expansion, width, repeats, stride in _STAGES:
            for i in range(repeats):
                blocks.append(_Block(channels, width, expansion, stride if i == 0 else 1))
                channels = width
        blocks.append(_conv_relu6(channels, _FEATURES, 1))
        self.features = nn.Sequential(*blocks)
        # The first place is torchvision's dropout, which holds no weights.
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(_FEATURES, _CLASSES))

    def forward(self, images: Tensor) -> MobileNetOutput:
        """Features and logits of images of any size."""
        resized = F.interpolate(
            images.float(), (INPUT_PX, INPUT_PX), mode="bilinear", antialias=True
        )
        pool = self.features(resized / 127.5 - 1).mean(dim=(2, 3))  # (B, 1280)
        return MobileNetOutput(pool, self.classifier(pool))


class _Block(nn.Module):
    """Expand, filter each channel, project; the input is added where the shapes agree."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        expand = [_conv_relu6(channels, inner, 1)] if expansion > 1 else []
        depthwise = _conv_relu6(inner, inner, 3, stride, groups=inner)
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(inner, width, 1))
        self.is_residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.is_residual else out


class _SameConv2d(nn.Conv2d):
    """TensorFlow's SAME padding: with stride 2 and an even side, right and bottom only."""

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (2, 2):
            x = F.pad(x, (0, 1, 0, 1))
        return super().forward(x)


def _conv_relu6(
    channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2 if stride == 1 else 0
    conv = _SameConv2d(channels, width, kernel, stride, padding, groups=groups)
    return nn.Sequential(conv, nn.ReLU6())
