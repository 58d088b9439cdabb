"""What every discriminator of stage 1 shares: its settings and its interface."""

import warnings
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor, nn

from varlit.errors import UserError
from varlit.models.config import GROUP_NORM_GROUPS, PlainConfig

DiscriminatorKind = Literal["patch", "stylegan", "dino"]
KINDS: tuple[DiscriminatorKind, ...] = ("patch", "stylegan", "dino")

# Fields that only some kinds read.
READERS = {
    "channels": ("patch", "stylegan"),
    "num_layers": ("patch", "stylegan"),
    "minibatch_std": ("stylegan",),
    "trunk": ("dino",),
    "weights": ("dino",),
}


@dataclass(frozen=True)
class DiscriminatorConfig(PlainConfig):
    """Shape of the discriminator; without effect where the loss has disc_weight 0."""

    kind: DiscriminatorKind = "patch"
    """`patch`: PatchGAN of pix2pix and VQGAN. `stylegan`: residual blocks that blur before they
    halve. `dino`: small heads over a frozen DINO transformer, as in StyleGAN-T and VAR (vaex);
    the strongest, needs weights."""
    channels: int = 64
    """Width after the first convolution of `patch` and `stylegan`, a multiple of 32; doubles up to
    eightfold."""
    num_layers: int = 3
    """Times that `patch` and `stylegan` halve the side. `patch` needs images of 3 * 2 ** num_layers
    px, `stylegan` of 2 * 2 ** num_layers px."""
    minibatch_std: bool = False
    """Show `stylegan` how much four neighbours of the batch differ. Then an image's logits depend
    on its neighbours, and on how the batch is spread over devices."""
    trunk: str = "vit_small_patch16_224.dino"
    """timm's name of the frozen transformer of `dino`."""
    weights: str | None = None
    """File with the weights of `trunk` (timm's or DINO's own, .pth or .safetensors); default
    $VARLIT_DINO, then timm's download."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"discriminator.kind must be one of {list(KINDS)}; got {self.kind!r}")
        if self.channels < 1 or self.channels % GROUP_NORM_GROUPS:
            raise UserError(
                f"discriminator.channels must be a multiple of {GROUP_NORM_GROUPS} (group norm); "
                f"got {self.channels}"
            )
        if self.num_layers < 1:
            raise UserError(f"discriminator.num_layers must be at least 1; got {self.num_layers}")
        for field in fields(self):
            readers = READERS.get(field.name, KINDS)
            if self.kind not in readers and getattr(self, field.name) != field.default:
                warnings.warn(
                    f"discriminator.{field.name} is ignored: only {' and '.join(readers)} "
                    f"read it, and discriminator.kind is {self.kind}",
                    stacklevel=3,
                )


class Discriminator(nn.Module):
    """Tells reconstructions from images; the same in how it is called, whatever its kind.

    All kinds hold to three rules, so that one fused step can serve both players:

    - An image's logits depend on that image alone (but for `minibatch_std`), so real and fake may
      share a pass, and nothing has to be synchronised between processes.
    - Called with detached parameters (`torch.func.functional_call`), it changes no buffer.
    - It follows autocast and dtype of its surroundings, and its gradient is differentiable (R1).
    """

    config: DiscriminatorConfig

    @property
    def minimum_side_px(self) -> int:
        """Smallest image side that leaves something to judge."""
        raise NotImplementedError

    def remedy(self, side_px: int) -> str:
        """What to set for images of this side, which is too small."""
        return "set disc_weight 0"

    def check_image_size(self, side_px: int) -> None:
        """Refuse images that leave nothing to judge.

        Raises:
            UserError: With a setting that would fit.
        """
        if side_px < self.minimum_side_px:
            raise UserError(
                f"a {self.config.kind} discriminator like this needs images of at least "
                f"{self.minimum_side_px} px; got {side_px} px: {self.remedy(side_px)}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, ...) of images (B, 3, H, W) in [-1, 1]; large = taken for real."""
        raise NotImplementedError


class HalvingDiscriminator(Discriminator):
    """A convolutional discriminator that halves the side `num_layers` times."""

    # Side of the smallest map that is left after the halvings, in cells.
    cells_left: int

    @property
    def minimum_side_px(self) -> int:
        """Smallest image side that leaves a patch to judge."""
        return int(self.cells_left * 2**self.config.num_layers)

    def remedy(self, side_px: int) -> str:
        """Fewer halvings where that is enough."""
        fewer = range(1, self.config.num_layers)
        fitting = max((n for n in fewer if self.cells_left * 2**n <= side_px), default=0)
        return f"set discriminator.num_layers {fitting}" if fitting else "set disc_weight 0"
