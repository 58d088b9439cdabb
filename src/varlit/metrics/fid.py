"""FID and inception score, first version: torch-fidelity's Inception under a stated protocol.

The network is a plain attribute of a plain object: no module tree, checkpoint or moving average
sees it. Images are rounded to uint8 first and resized as TensorFlow 1 did, without antialiasing,
as the ADM suite's numbers are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.metrics.frechet import (
    FeatureStatistics,
    FeatureSums,
    read_statistics,
    statistics_distance,
)
from varlit.metrics.inception import find_inception, load_inception, sha256
from varlit.metrics.ranks import concatenate_over_ranks
from varlit.metrics.reconstruction import to_uint8
from varlit.ops.quantize import strict_fp32

INCEPTION = "inception"


@dataclass(frozen=True)
class FIDReport:
    """Distances of generated to real images, with the protocol that they were made by.

    With another network than Inception `fid` is a Frechet distance in that network's features,
    and `to_dict` names it so.
    """

    fid: float
    inception_score_mean: float
    inception_score_std: float  # over the splits
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
        num_splits: int = 10,
        seed: int = 0,
    ) -> None:
        self.num_splits, self.seed = num_splits, seed
        self.protocol: dict[str, Any] = {
            "rounding": "uint8, to nearest",
            "precision": "float32 network, float64 statistics",
            "score_splits": num_splits,
            "score_seed": seed,
            "torch": torch.__version__,
        }
        if feature_network is None:
            path = find_inception(weights)
            self._network = load_inception(path)
            self.protocol |= {
                "features": INCEPTION,
                "resize": "299 px, bilinear as TensorFlow 1, no antialiasing",
                "weights_file": path.name,
                "weights_sha256": sha256(path),
                "torch_fidelity": version("torch-fidelity"),
            }
        else:
            self._network = feature_network()
            self.protocol |= {"features": feature_name, "resize": "by the network"}
        self._network.requires_grad_(False).eval()
        self._dim, self._num_classes = (part.shape[1] for part in self._extract(_probe()))
        self._reference: FeatureStatistics | None = None
        self._real = FeatureSums(self._dim)
        self.reset()

    def reset(self) -> None:
        """Forget the generated images, and keep the reference."""
        self._fake = FeatureSums(self._dim)
        self._logits = [torch.zeros(0, self._num_classes)]

    def update(self, images: Tensor) -> None:
        """Add generated images (B, 3, H, W), in [-1, 1] or uint8, on any device."""
        features, logits = self._extract(images)
        self._fake.update(features)
        self._logits.append(logits.cpu())

    def update_reference(self, images: Tensor) -> None:
        """Add real images (B, 3, H, W), in [-1, 1] or uint8, to compare with."""
        features, _ = self._extract(images)
        self._real.update(features)

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
        logits = concatenate_over_ranks(torch.cat(self._logits))
        score, spread = inception_score(logits, self.num_splits, self.seed)
        return FIDReport(
            fid=statistics_distance(fake.statistics(), reference),
            inception_score_mean=score,
            inception_score_std=spread,
            num_images=fake.count,
            num_reference_images=reference.count,
            protocol=dict(self.protocol),
        )

    @torch.no_grad()
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._network.to(images.device)
        with strict_fp32(images.device):
            features, logits = self._network(to_uint8(images))
        return features, logits.float()


def inception_score(logits: Tensor, num_splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) as mean and standard deviation over splits, Salimans et al. 2016.

    The order of the images does not matter: rows are sorted by value, then shuffled by a fixed
    seed. Over ten splits of samples sorted by class the score would be nonsense.

    Args:
        logits: (N, C) class logits without bias.
        num_splits: Parts of nearly equal size; N must not be smaller.
        seed: Of the shuffle.
    """
    if len(logits) < num_splits:
        raise UserError(
            f"an inception score over {num_splits} splits needs at least {num_splits} images; "
            f"got {len(logits)}"
        )
    rows = logits.double().cpu()
    # Two images with the same first logits are the same image; more keys only cost time.
    keys = rows[:, : min(8, rows.shape[1])].numpy().T
    order = np.lexsort(keys)[np.random.default_rng(seed).permutation(len(rows))]
    scores = []
    for part in rows[torch.from_numpy(order)].tensor_split(num_splits):
        log_p = part.log_softmax(dim=1)
        log_mean = log_p.logsumexp(dim=0) - np.log(len(part))  # log p(y)
        divergence = (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean()
        scores.append(float(divergence.exp()))
    return float(np.mean(scores)), float(np.std(scores))


def _probe() -> Tensor:
    return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
