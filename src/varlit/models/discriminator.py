"""The choice of discriminators of stage 1, one file a kind."""

from varlit.models.discriminator_config import (
    Discriminator,
    DiscriminatorConfig,
    DiscriminatorKind,
)
from varlit.models.discriminator_dino import DinoDiscriminator
from varlit.models.discriminator_patch import PatchDiscriminator
from varlit.models.discriminator_stylegan import StyleGANDiscriminator

__all__ = ["Discriminator", "DiscriminatorConfig", "build_discriminator"]

# New kinds register here; each is built from the config alone and gives logits of any shape.
_CLASSES: dict[DiscriminatorKind, type[Discriminator]] = {
    "patch": PatchDiscriminator,
    "stylegan": StyleGANDiscriminator,
    "dino": DinoDiscriminator,
}


def build_discriminator(config: DiscriminatorConfig) -> Discriminator:
    """The discriminator that a config describes, freshly initialised.

    Raises:
        UserError: If the weights of a trunk are not to be had.
    """
    return _CLASSES[config.kind](config)
