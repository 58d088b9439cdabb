"""FID and inception score of images without ids: what validation of stage 1 measures.

Images are rounded to uint8 first and resized as TensorFlow 1 did, without antialiasing, as the
ADM suite's numbers are made. All measures of a whole evaluation: `varlit.metrics.measures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.metrics.frechet import (
    FeatureStatistics,
    FeatureSums,
    read_statistics,
    statistics_distance,
)
from varlit.metrics.image_features import check_images
from varlit.metrics.inception_score import NUM_SPLITS, SEED, inception_score
from varlit.metrics.networks import INCEPTION, FeatureNetwork, Features, open_network, sha256
from varlit.metrics.ranks import concatenate_over_ranks
from varlit.metrics.reconstruction import to_uint8


@dataclass(frozen=True)
class FIDReport:
    """Distances of generated to real images, with the protocol that they were made by.

    With another network than Inception `fid` is a Frechet distance in that network's features,
    and `to_dict` names it so.
    """

    fid: float
    inception_score_mean: float | None  # None where the network gives no logits
    inception_score_std: float | None  # over the splits
    num_images: int
    num_reference_images: int | None  # None where the reference file does not tell
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; only Inception's numbers are called `fid` and `inception_score`."""
        plain = asdict(self)
        features = self.protocol["features"]
        if features != INCEPTION:
            plain[f"frechet_{features}"] = plain.pop("fid")
            for statistic in ("mean", "std"):
                key = f"{features}_score_{statistic}"
                plain[key] = plain.pop(f"inception_score_{statistic}")
        return plain


class InceptionMetrics:
    """Gathers features of real and generated images, on any number of processes.

    Args:
        weights: Inception's weights file; without it `$VARLIT_INCEPTION`, then the torch hub
            cache or a download.
        feature_network: Builds another network in Inception's place: a module from uint8
            (B, 3, H, W) to a pair of features (B, D) and class logits (B, C).
        feature_name: What that other network is called in the report.
        network: One that is open already, in place of all of these.
        num_splits: Parts that the inception score is averaged over.
        seed: Of the shuffle before the split.

    Raises:
        UserError: If the weights are not to be had; says which file to put where.
    """

    def __init__(
        self,
        weights: str | None = None,
        feature_network: Callable[[], nn.Module] | None = None,
        feature_name: str = "custom",
        num_splits: int = NUM_SPLITS,
        seed: int = SEED,
        network: FeatureNetwork | None = None,
    ) -> None:
        self.num_splits, self.seed = num_splits, seed
        if network is not None:
            self._network = network
        elif feature_network is None:
            self._network = open_network(INCEPTION, weights)
        else:
            self._network = FeatureNetwork(feature_network(), feature_name)
        self.protocol: dict[str, Any] = {
            **self._network.protocol(),
            "rounding": "uint8, to nearest",
            "score_splits": num_splits,
            "score_seed": seed,
            "torch": torch.__version__,
        }
        if self._network.is_inception:
            self.protocol["torch_fidelity"] = version("torch-fidelity")
        self._dim, self._num_classes = self._network.feature_dim, self._network.num_classes
        self._reference: FeatureStatistics | None = None
        self._real = FeatureSums(self._dim)
        self.reset()

    def reset(self) -> None:
        """Forget the generated images, and keep the reference."""
        self._fake = FeatureSums(self._dim)
        self._logits = [torch.zeros(0, self._num_classes or 0)]

    def update(self, images: Tensor) -> None:
        """Add generated images (B, 3, H, W), in [-1, 1] or uint8, on any device."""
        found = self._extract(images)
        self._fake.update(found.pool)
        if found.logits is not None:
            self._logits.append(found.logits.cpu())

    def update_reference(self, images: Tensor) -> None:
        """Add real images (B, 3, H, W), in [-1, 1] or uint8, to compare with."""
        self._real.update(self._extract(images).pool)

    def load_reference(self, path: str | Path) -> None:
        """Compare with the `mu` and `sigma` of an .npz in place of real images.

        Raises:
            UserError: If the file is missing or holds other features' statistics.
        """
        path = Path(path).expanduser()
        statistics = read_statistics(path)
        if len(statistics.mean) != self._dim:
            raise UserError(
                f"{path} holds statistics of {len(statistics.mean)} features, but the network "
                f"gives {self._dim}; give a reference made with {self.protocol['features']}"
            )
        self._reference = statistics
        self.protocol |= {"reference": path.name, "reference_sha256": sha256(path)}

    def reference_statistics(self) -> FeatureStatistics:
        """What is compared with; every process must call it. `write_statistics` keeps it."""
        if self._reference is not None:
            return self._reference
        real = self._real.reduced()
        if not real.count:
            raise UserError(
                "nothing to compare with: give real images (update_reference) or an .npz of "
                "reference statistics (load_reference)"
            )
        self.protocol["reference"] = "real images"
        return real.statistics()

    def compute(self) -> FIDReport:
        """The report over all processes; every one of them must call it.

        Raises:
            UserError: If images are too few or there is no reference.
        """
        reference = self.reference_statistics()
        fake = self._fake.reduced()
        score = None
        if self._num_classes is not None:
            logits = concatenate_over_ranks(torch.cat(self._logits))
            score = inception_score(logits, self.num_splits, self.seed)
        return FIDReport(
            fid=statistics_distance(fake.statistics(), reference),
            inception_score_mean=None if score is None else score.mean,
            inception_score_std=None if score is None else score.std,
            num_images=fake.count,
            num_reference_images=reference.count,
            protocol=dict(self.protocol),
        )

    def _extract(self, images: Tensor) -> Features:
        check_images(torch.arange(len(images)), images)
        return self._network(to_uint8(images))
