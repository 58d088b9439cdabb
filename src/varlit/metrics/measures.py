"""All measures of a set of samples against a reference, under the name of the feature network."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from varlit.errors import UserError
from varlit.metrics import inception_score as score
from varlit.metrics import kernel
from varlit.metrics.frechet import check_enough, statistics_distance
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.neighbours import precision_recall
from varlit.metrics.networks import INCEPTION
from varlit.metrics.reference_files import Reference
from varlit.metrics.references import NUM_ROWS, check_reference

PAPER_NUM_IMAGES = 50_000


@dataclass(frozen=True)
class MeasureSettings:
    """How the measures are taken; the defaults are those of torch-fidelity and of ADM."""

    score_splits: int = score.NUM_SPLITS
    score_seed: int = score.SEED
    kid_subsets: int = kernel.NUM_SUBSETS
    kid_subset_size: int = kernel.SUBSET_SIZE  # fewer where a side has fewer images
    kid_seed: int = kernel.SEED
    neighbours: int = 3
    neighbour_images: int = NUM_ROWS  # real ones, for precision and recall, as ADM; 0 = all
    allow_few: bool = False  # fewer images than features, for a number that compares with nothing

    def protocol(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "allow_few"}


@dataclass(frozen=True)
class Measures:
    """What was measured; None is what the network or the reference has nothing for."""

    network: str
    num_images: int
    frechet: float
    spatial_frechet: float | None = None
    score_mean: float | None = None  # over splits
    score_std: float | None = None
    score_whole: float | None = None  # all images as one split
    kernel_mean: float | None = None  # over subsets
    kernel_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    remarks: tuple[str, ...] = ()  # why a number should not be trusted, in words
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def is_quick(self) -> bool:
        """Whether images are fewer than the 50,000 that published figures are of."""
        return self.num_images < PAPER_NUM_IMAGES

    def to_dict(self) -> dict[str, float]:
        """Numbers by name: `fid`, `sfid`, ... by Inception, else with the network's name.

        Fewer than 50,000 images make a `quick_fid`.
        """
        return {self.key(name): value for name, value in self._numbers().items()}

    def table(self) -> dict[str, float]:
        """Numbers by the name that people read: `FID`, or `Frechet distance (mobilenet_v2)`."""
        return {self.title(name): value for name, value in self._numbers().items()}

    def key(self, name: str) -> str:
        """What a field such as `frechet` is called in metrics.json."""
        plain, is_inception = _NAMES[name].key, self.network == INCEPTION
        full = plain if is_inception else f"{name}_{self.network}"
        return f"quick_{full}" if self.is_quick else full

    def title(self, name: str) -> str:
        """What a field such as `frechet` is called in a table."""
        names, is_inception = _NAMES[name], self.network == INCEPTION
        full = names.title if is_inception else f"{names.other_title} ({self.network})"
        return f"quick {full}" if self.is_quick else full

    def _numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _NAMES if getattr(self, name) is not None}


@dataclass(frozen=True)
class _Names:
    key: str
    title: str
    other_title: str


_NAMES = {
    "frechet": _Names("fid", "FID", "Frechet distance"),
    "spatial_frechet": _Names("sfid", "sFID", "spatial Frechet distance"),
    "score_mean": _Names("inception_score_mean", "IS", "score"),
    "score_std": _Names("inception_score_std", "IS deviation", "score deviation"),
    "score_whole": _Names("inception_score_whole", "IS, one split", "score, one split"),
    "kernel_mean": _Names("kid_mean", "KID", "kernel distance"),
    "kernel_std": _Names("kid_std", "KID deviation", "kernel distance deviation"),
    "precision": _Names("precision", "precision", "precision"),
    "recall": _Names("recall", "recall", "recall"),
}


def measure(
    samples: ImageFeatures,
    reference: Reference,
    settings: MeasureSettings | None = None,
    device: torch.device | str = "cpu",
) -> Measures:
    """Compare samples with a reference; every process must call it, with its own share.

    Args:
        samples: Of this process; they are joined here.
        reference: The same on all processes.
        settings: How.
        device: Where distances between features are computed.

    Raises:
        UserError: If the reference does not fit, or images are too few or not finite.
    """
    settings, whole = settings or MeasureSettings(), samples.reduced()
    network, pool = whole.network, whole.pool.statistics()
    remarks = (
        network.remark,
        check_reference(reference, network, whole.image_px, settings.allow_few),
        check_enough(pool, "generated", settings.allow_few),
    )
    made = Measures(
        network=network.name,
        num_images=whole.count,
        frechet=statistics_distance(pool, reference.pool),
        spatial_frechet=_spatial(whole, reference),
        remarks=tuple(filter(None, remarks)),
        protocol={
            **network.protocol(),
            "rounding": f"uint8, {whole.rounding}",
            "num_images": whole.count,
            **reference.protocol(),
            **settings.protocol(),
            **_row_counts(whole, reference, settings),
        },
    )
    by_rows = _by_rows(whole, reference, settings, device)
    return replace(made, **_score(whole, settings), **by_rows)


def _spatial(samples: ImageFeatures, reference: Reference) -> float | None:
    if samples.spatial is None or reference.spatial is None:
        return None
    return statistics_distance(samples.spatial.statistics(), reference.spatial)


def _score(samples: ImageFeatures, settings: MeasureSettings) -> dict[str, Any]:
    if samples.logits is None:
        return {}
    found = score.inception_score(
        samples.logits.rows, settings.score_splits, settings.score_seed, samples.logits.ids
    )
    return {"score_mean": found.mean, "score_std": found.std, "score_whole": found.whole}


def _row_counts(
    samples: ImageFeatures, reference: Reference, settings: MeasureSettings
) -> dict[str, int]:
    """How many single images KID, precision and recall look at, after all."""
    if reference.rows is None:
        return {}
    num_fake, num_real = len(samples.rows), len(reference.rows)
    return {
        "sample_rows": num_fake,
        "kid_subset_size": min(settings.kid_subset_size, num_fake, num_real),
        "precision_images": num_fake,
        "recall_images": min(settings.neighbour_images or num_real, num_real),
    }


def _by_rows(
    samples: ImageFeatures,
    reference: Reference,
    settings: MeasureSettings,
    device: torch.device | str,
) -> dict[str, Any]:
    """KID, precision and recall, where the reference keeps features of single images."""
    if reference.rows is None:
        return {}
    real, fake = reference.rows, samples.rows.rows
    counts = _row_counts(samples, reference, settings)
    size = counts["kid_subset_size"]
    if size <= settings.neighbours:
        raise UserError(
            f"precision and KID need more than {settings.neighbours} images on both sides; got "
            f"{len(fake)} generated and {len(real)} real"
        )
    distance = kernel.kernel_distance(
        fake, real, settings.kid_subsets, size, settings.kid_seed, device
    )
    shares = precision_recall(
        reference.subset(counts["recall_images"]),
        fake,
        settings.neighbours,
        device,
    )
    return {
        "kernel_mean": distance.mean,
        "kernel_std": distance.std,
        "precision": shares.precision,
        "recall": shares.recall,
    }
