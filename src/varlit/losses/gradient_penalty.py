"""R1, the penalty on how steeply the discriminator judges real images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def r1_penalty(judge: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean squared gradient norm of an image's logit, Mescheder et al. 2018, equation 9.

    A discriminator with many logits an image is taken by their mean, as its loss is, so that a
    weight means the same whatever their number. The penalty is in fp32 or better with autocast
    off. Its second derivative excludes fused attention, hence the plain kernel.

    Args:
        judge: The discriminator, with what it is shown in place of the image, if anything.
        images: Real images (B, 3, H, W).

    Returns:
        Scalar E ||d mean(logits) / d image||^2, without the customary factor of a half.
    """
    images = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    images.requires_grad_()
    with torch.autocast(images.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        logits = judge(images).reshape(len(images), -1).mean(dim=1)  # (B,)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()
