"""Settings of stage 1's objective; their docstrings are the `--help`."""

import warnings
from dataclasses import dataclass, fields
from typing import Literal

from varlit.errors import UserError
from varlit.losses.adversarial import AdversarialKind
from varlit.losses.augment import AUGMENT_KINDS, AugmentKind
from varlit.losses.perceptual import PerceptualNet
from varlit.models.config import PlainConfig, check_share

# Settings of the discriminator's game, without effect where there is none.
GAME = ("disc_", "augment_", "adaptive_", "lecam_", "r1_", "consistency_")


@dataclass(frozen=True)
class TokenizerLossConfig(PlainConfig):
    """Weights of the tokenizer's objective; the defaults are VAR's (vaex) with LeCam."""

    l1_weight: float = 0.2
    """Weight of the mean absolute error."""
    l2_weight: float = 1.0
    """Weight of the mean squared error."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS; 0 = off, nothing is loaded or downloaded."""
    perceptual_net: PerceptualNet = "vgg"
    """Trunk of LPIPS."""
    perceptual_weights: str | None = None
    """File with the trunk's weights; default $VARLIT_LPIPS_<NET>, then torchvision's download."""
    codebook_weight: float = 1.0
    """Weight of pulling codes to features."""
    commitment_weight: float = 0.25
    """Weight of pulling features to codes (beta)."""
    feature_error: Literal["every_scale", "last_scale"] = "every_scale"
    """What codebook_weight and commitment_weight weigh: the mean error of the sums up to every
    scale, as official VAR's code does, or the error of the whole sum alone, |f - f_hat|^2 of the
    paper's equation."""
    entropy_weight: float = 0.0
    """Weight of sure and evenly spread choices of codes (`assignment_entropy`); vaex: 0, off."""
    entropy_temperature: float = 0.01
    """Softness of those choices, in squared distance; IBQ takes 0.01."""
    disc_weight: float = 0.4
    """Weight of the adversarial loss; 0 = no discriminator."""
    adaptive_weight: bool = True
    """Balance the adversarial gradient against the reconstruction's at the decoder's last layer."""
    adaptive_min: float = 0.015
    """Lower bound of the adaptive weight."""
    adaptive_max: float = 1e4
    """Upper bound of the adaptive weight."""
    disc_start: float = 0.2
    """Share of training after which the discriminator starts."""
    disc_warmup: float = 0.02
    """Share of training over which the adversarial weight then rises linearly."""
    disc_blur_fade: float = 0.0
    """Share of training, from disc_start on, over which a blur of what the discriminator sees
    fades out; vaex: 0.04. 0 = no blur."""
    disc_loss: AdversarialKind = "hinge"
    """Form of the adversarial loss, the sum of its real and its fake half."""
    disc_augment: tuple[AugmentKind, ...] = ()
    """Distort what the discriminator sees (DiffAugment), such as [translation,color,cutout]."""
    augment_probability: float = 1.0
    """Share of the images that each kind of disc_augment is applied to."""
    augment_cutout: float = 0.2
    """Side of the hole of `cutout` over the image's."""
    lecam_weight: float = 0.001
    """Weight of the LeCam regulariser of the discriminator; 0 = off."""
    lecam_decay: float = 0.999
    """Decay of LeCam's moving averages of the logits."""
    r1_weight: float = 0.0
    """Gamma of the R1 penalty on the discriminator's gradient at real images, which costs a second
    derivative; 0 = off."""
    r1_every_n_steps: int = 16
    """R1 is computed in one step of so many, and weighs so many times as much."""
    consistency_weight: float = 0.0
    """Weight of equal logits for another distortion of the same images (bCR), which costs a pass of
    the discriminator; vaex: 8. 0 = off."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "disc_augment", tuple(self.disc_augment))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and not value >= 0:
                raise UserError(f"loss.{field.name} must not be negative; got {value}")
        if self.disc_start > 1:
            raise UserError(
                f"loss.disc_start is a share of training between 0 and 1; got {self.disc_start}. "
                "Divide the step by the number of steps, or set disc_weight 0 for no discriminator"
            )
        for name in ("disc_warmup", "disc_blur_fade", "augment_probability", "augment_cutout"):
            check_share(f"loss.{name}", getattr(self, name), up_to_one=True)
        if not self.entropy_temperature:
            raise UserError("loss.entropy_temperature must be positive; got 0. Try 0.01")
        if self.adaptive_min > self.adaptive_max:
            raise UserError(
                f"loss.adaptive_min {self.adaptive_min} is above adaptive_max {self.adaptive_max}"
            )
        if self.lecam_decay >= 1:
            raise UserError(f"loss.lecam_decay must be below 1; got {self.lecam_decay}")
        if self.r1_every_n_steps < 1:
            raise UserError(
                f"loss.r1_every_n_steps must be at least 1; got {self.r1_every_n_steps}. Set "
                "r1_weight 0 for no R1"
            )
        unknown = [kind for kind in self.disc_augment if kind not in AUGMENT_KINDS]
        if unknown:
            raise UserError(
                f"loss.disc_augment knows {', '.join(AUGMENT_KINDS)}; got {', '.join(unknown)}"
            )
        self._warn_of_ignored()

    def _warn_of_ignored(self) -> None:
        """Say which settings that were changed are without effect, and why."""
        game = [f.name for f in fields(self) if f.name.startswith(GAME)]
        game.remove("disc_weight")
        cases: list[tuple[bool, list[str], str]] = [
            (
                not self.perceptual_weight,
                ["perceptual_net", "perceptual_weights"],
                "perceptual_weight is 0",
            ),
            (not self.entropy_weight, ["entropy_temperature"], "entropy_weight is 0"),
            (not self.disc_weight, game, "disc_weight is 0"),
        ]
        if self.disc_weight:
            holes = "cutout" in self.disc_augment or self.consistency_weight
            cases += [
                (not self.adaptive_weight, ["adaptive_min", "adaptive_max"], "it is not adaptive"),
                (not self.disc_augment, ["augment_probability"], "disc_augment is empty"),
                (not holes, ["augment_cutout"], "disc_augment is without cutout"),
                (not self.lecam_weight, ["lecam_decay"], "lecam_weight is 0"),
                (not self.r1_weight, ["r1_every_n_steps"], "r1_weight is 0"),
            ]
        defaults = {field.name: field.default for field in fields(self)}
        for is_off, names, reason in cases:
            changed = [f"loss.{n}" for n in names if getattr(self, n) != defaults[n]]
            if is_off and changed:
                verb = "is" if len(changed) == 1 else "are"
                text = f"{', '.join(changed)} {verb} ignored, because {reason}"
                warnings.warn(text, stacklevel=4)
