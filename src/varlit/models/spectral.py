"""Spectral normalisation that a fused step of two players can share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

START_ITERATIONS = 15


class SpectralConv1d(nn.Conv1d):
    """A convolution along tokens, circular, whose weight is divided by its largest singular value.

    Miyato et al. 2018, "Spectral Normalization for GANs", with one power iteration a pass. It
    differs from torch's in when it iterates: only in train mode and only where the weight is
    learning. The generator's pass with detached weights (`torch.func.functional_call`) thus finds
    the same singular vectors as the discriminator's pass before or after it, and changes none;
    vaex gets there by switching the discriminator to eval mode and back. The singular value is
    found outside autocast.
    """

    left: Tensor
    right: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__(
            channels_in,
            channels_out,
            kernel_size,
            padding=kernel_size // 2,
            padding_mode="circular",
        )
        nn.init.trunc_normal_(self.weight, std=0.02)  # vaex; its scale is divided away
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        matrix = self.weight.detach().flatten(1)
        self.register_buffer("left", F.normalize(torch.randn(len(matrix)), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(START_ITERATIONS):
            self._iterate(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, D, L)."""
        return self._conv_forward(x, self.normalized_weight(), self.bias)

    def normalized_weight(self) -> Tensor:
        """The weight over its largest singular value, differentiable in the weight."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            if self.training and self.weight.requires_grad:
                self._iterate(matrix.detach())
            # Copies: the next iteration writes in place what the backward pass still needs.
            left, right = self.left.clone(), self.right.clone()
            return self.weight / torch.dot(left, matrix.mv(right))

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.right.copy_(F.normalize(matrix.t().mv(self.left), dim=0))
        self.left.copy_(F.normalize(matrix.mv(self.right), dim=0))
