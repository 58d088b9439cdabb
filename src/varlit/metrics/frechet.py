"""The Frechet distance between Gaussians fitted to two sets of features, in float64.

Whose features they are decides the name: only Inception's give an FID.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.metrics.ranks import sum_over_ranks

_UNKNOWN = -1  # in files: how many images the statistics are of


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and unbiased covariance of a set of features, float64 on the CPU."""

    mean: Tensor  # (D,)
    cov: Tensor  # (D, D)
    count: int | None  # number of images; None where a file does not tell


class FeatureSums:
    """Running sums of features, in float64: merging parts in any order equals the whole.

    Args:
        dim: D, the number of features; given beforehand so that processes without any image
            still take part in `reduced`.
    """

    def __init__(self, dim: int) -> None:
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)
        self.count = 0

    def update(self, features: Tensor) -> None:
        """Add features (B, D) of any floating type and device."""
        device = features.device
        # MPS has no float64; elsewhere the sums live where the features are made.
        features = features.double() if device.type != "mps" else features.cpu().double()
        self._sum = self._sum.to(features.device) + features.sum(dim=0)
        self._products = self._products.to(features.device).addmm(features.T, features)
        self.count += len(features)

    def reduced(self) -> FeatureSums:
        """The sums over all processes; every process must call it."""
        total = FeatureSums(len(self._sum))
        total._sum = sum_over_ranks(self._sum.cpu())
        total._products = sum_over_ranks(self._products.cpu())
        total.count = int(sum_over_ranks(torch.tensor(self.count)))
        return total

    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of all that was added.

        Raises:
            UserError: If there are fewer than 2 features, or one is not finite.
        """
        if self.count < 2:
            raise UserError(
                f"a covariance needs at least 2 images; got {self.count}. Draw or read more"
            )
        mean = self._sum.cpu() / self.count
        scatter = self._products.cpu() - self.count * torch.outer(mean, mean)
        if not scatter.isfinite().all():
            raise UserError(
                f"the features of {self.count} images are not all finite; do the images hold NaN?"
            )
        return FeatureStatistics(mean, scatter / (self.count - 1), self.count)


def feature_statistics(features: Tensor | np.ndarray) -> FeatureStatistics:
    """Mean and covariance of features (N, D) that fit in memory.

    Raises:
        UserError: If N is below 2, or a feature is not finite.
    """
    features = torch.as_tensor(features).double().cpu()
    sums = FeatureSums(features.shape[1])
    # Sums of centred features lose nothing to cancellation.
    centre = features.mean(dim=0) if len(features) else torch.zeros(features.shape[1]).double()
    sums.update(features - centre)
    statistics = sums.statistics()
    return FeatureStatistics(statistics.mean + centre, statistics.cov, len(features))


def frechet_distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Squared Frechet distance between features (N, D) and (M, D); 0 for the same set."""
    return statistics_distance(feature_statistics(a), feature_statistics(b))


def statistics_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), Heusel et al. 2017, equation 6.

    (A B)^(1/2) has the eigenvalues of (A^(1/2) B A^(1/2))^(1/2), a symmetric matrix: they are
    real even where covariances are singular, as those of digits with pixels that never change,
    on which scipy's sqrtm of A B warns that it may be wrong.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"both sets need the same features; got {len(a.mean)} and {len(b.mean)} dimensions. "
            "Were the reference statistics made with another feature network?"
        )
    root = _root(a.cov)
    product = root @ b.cov @ root
    # Rounding leaves zeros slightly negative.
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + a.cov.trace() + b.cov.trace() - 2 * overlap
    return float(distance.clamp(min=0))


def _root(cov: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    # An eigenvalue of 0 comes out as rounding noise, and its root would be 1e-8, not 1e-16.
    noise = len(values) * torch.finfo(values.dtype).eps * float(values[-1])
    return (vectors * values.where(values > noise, 0.0).sqrt()) @ vectors.T


def read_statistics(path: Path) -> FeatureStatistics:
    """Read `mu` and `sigma` of an .npz: ADM's reference batches, pytorch-fid's, or our own.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"no reference statistics at {path}; give an .npz with `mu` and `sigma`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("mu", "sigma", "count") if key in archive}
            found = sorted(archive.files)
    except (OSError, EOFError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz ({error})") from error
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(
            f"{path} holds {found}; expected `mu` and `sigma`, the reference statistics that "
            "ADM's VIRTUAL_imagenet256_labeled.npz holds among others"
        )
    mean, cov = torch.tensor(arrays["mu"]), torch.tensor(arrays["sigma"])
    count = int(arrays.get("count", _UNKNOWN))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: mu must be (D,) and sigma (D, D); got {tuple(mean.shape)} and "
            f"{tuple(cov.shape)}"
        )
    return FeatureStatistics(mean.double(), cov.double(), None if count == _UNKNOWN else count)


def write_statistics(statistics: FeatureStatistics, path: Path) -> None:
    """Write `mu`, `sigma` and `count` to an .npz that `read_statistics` and others read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = _UNKNOWN if statistics.count is None else statistics.count
    with temporary.open("wb") as stream:
        np.savez(
            stream, mu=statistics.mean.numpy(), sigma=statistics.cov.numpy(), count=np.array(count)
        )
    os.replace(temporary, path)
