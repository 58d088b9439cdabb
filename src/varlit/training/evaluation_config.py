"""What an evaluation draws, how it looks at it and what it compares it with: the settings."""

from dataclasses import dataclass
from typing import Any, Literal

from varlit.errors import UserError
from varlit.generation.rejection.request import RejectionRequest
from varlit.generation.rejection.rule import PAPER_PER_CLASS, RejectionSettings
from varlit.generation.sampler import SamplingSettings
from varlit.metrics.measures import PAPER_NUM_IMAGES, MeasureSettings
from varlit.metrics.networks import INCEPTION, FeatureNetwork, open_network
from varlit.metrics.reconstruction import Rounding
from varlit.metrics.references import NUM_ROWS
from varlit.models.config import PlainConfig


@dataclass(frozen=True)
class EvaluationConfig(PlainConfig):
    """What `varlit var test` draws; the defaults are the protocol of VAR's README."""

    num_images: int = PAPER_NUM_IMAGES
    """Images drawn, classes evenly; 50,000 or more."""
    quick: int = 0
    """Draw only so many: a quick look, called so everywhere, and no figure to quote; 0 = off."""
    batch_size: int = 64
    """Images drawn at a time on each device."""
    cfg_scale: float = 1.5
    """Guidance, rising over the scales."""
    top_k: int = 900
    """Draw among the k likeliest codes; 0 = all."""
    top_p: float = 0.96
    """Draw within this probability; 0 = all."""
    guidance: str = "var"
    """`var` = rising over the scales, 0 is none; `constant` = the usual convention, 1 is none."""
    more_smooth: bool = False
    """Blend codes: smoother pictures, worse FID."""
    seed: int = 0
    """Image i is drawn from seed + i."""
    keep: float = 1.0
    """Rejection sampling, the paper's "-re": keep this share of the images drawn, by class."""
    classifier: str = ""
    """What chooses: torchvision:NAME, timm:NAME or mobilenet_v2."""
    classifier_weights: str = ""
    """Its file, or download; default $VARLIT_CLASSIFIER."""
    classifier_classes: str = ""
    """Its output for each class, such as 985,-,3 (- = none); default by name."""
    unmatched: Literal["stop", "keep"] = "stop"
    """Classes that the classifier does not know: stop, or keep all images of them."""
    reference: str = ""
    """Real images: an .npz, a folder (FOLDER:val for one split), or data, data:train, data:val for
    those behind the token cache. Several with commas between; the first one's figures lead."""
    reference_rows: int = NUM_ROWS
    """Real images that precision, recall and KID look at; 0 = all. Of samples they look at all."""
    reference_workers: int = 4
    """Processes that read reference images."""
    network: str = INCEPTION
    """What looks at the images: inception, mobilenet_v2, torchscript, or one that is registered."""
    weights: str = ""
    """The network's file; default for Inception $VARLIT_INCEPTION, the hub cache, a download."""
    trust_torchscript: bool = False
    """A TorchScript file is a program, and loading it runs it: say that you trust its author."""
    inception: str = ""
    """The older name of `weights`."""
    rounding: Rounding = "nearest"
    """How images become uint8; `down` is ADM's truncation, half a grey level darker."""
    samples: str = ""
    """Also write the images to this .npz, as ADM's evaluator takes them."""
    save_every_s: float = 120.0
    """Save what is drawn so often, so that a run that was cut off goes on."""

    def __post_init__(self) -> None:
        if self.count < 2 or self.batch_size < 1:
            raise UserError(
                "evaluation needs at least 2 images, in batches of at least 1; got "
                f"{self.count} images, batch_size {self.batch_size}"
            )
        if not self.quick and self.num_images < PAPER_NUM_IMAGES:
            raise UserError(
                f"num_images is {self.num_images:,}, fewer than the {PAPER_NUM_IMAGES:,} of "
                f"published figures; for a quick look, called so everywhere, give quick "
                f"{self.num_images} (--quick, or --model.evaluation.quick)"
            )
        if self.samples and not self.samples.endswith(".npz"):
            raise UserError(f"samples wants the name of an .npz file; got {self.samples!r}")
        if self.reference_rows < 0:
            raise UserError(
                f"reference_rows is {self.reference_rows}: expected 0 (all images) or more"
            )
        self.sampling()
        self.rejection()

    @property
    def count(self) -> int:
        """Number of images."""
        return self.quick or self.num_images

    @property
    def references(self) -> tuple[str, ...]:
        """The references by themselves."""
        return tuple(filter(None, (place.strip() for place in self.reference.split(","))))

    def sampling(self) -> SamplingSettings:
        """The settings of the sampler."""
        return SamplingSettings(
            self.cfg_scale, self.top_k, self.top_p, self.guidance, self.more_smooth
        )

    def rejection(self) -> RejectionRequest:
        """What chooses among the images, still to be opened."""
        return RejectionRequest(
            self.keep,
            self.classifier,
            self.classifier_weights,
            self.classifier_classes,
            self.unmatched,
        )

    def drawing(self) -> dict[str, Any]:
        """All that decides which images are drawn, but for the weights and the classifier's."""
        names = ("cfg_scale", "top_k", "top_p", "guidance", "more_smooth", "seed")
        told = {name: getattr(self, name) for name in names}
        return told | {
            "num_images": self.count,
            "labels": "id mod classes",
            "seeds": "seed + id" if self.keep == 1.0 else self._told_candidates(),
        }

    def _told_candidates(self) -> str:
        block = RejectionSettings(self.keep).seeds_per_image
        return (
            f"chosen among {block} * (seed + id) + 0..{block - 1} of the same class, {block} * "
            f"(seed + id) where nothing is chosen; ids of a class in groups of {PAPER_PER_CLASS}"
        )

    def measuring(self) -> MeasureSettings:
        """How the measures are taken."""
        return MeasureSettings(neighbour_images=self.reference_rows, allow_few=bool(self.quick))

    def open_network(self) -> FeatureNetwork:
        """Open the feature network.

        Raises:
            UserError: If it is not to be had, or too few images would be drawn for it.
        """
        file = self.weights or self.inception or None
        network = open_network(self.network, file, self.trust_torchscript)
        if self.count <= network.feature_dim and not self.quick:
            raise UserError(
                f"{self.count:,} images are too few for {network.feature_dim:,} features of "
                f"{network.name}: expected more; draw more (num_images)"
            )
        return network
