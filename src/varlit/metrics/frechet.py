"""The Frechet distance between Gaussians fitted to two sets of features, in float64.

Whose features they are decides the name: only Inception's give an FID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from varlit.arrays import array_names, read_arrays
from varlit.errors import UserError
from varlit.metrics.ranks import sum_over_ranks

_UNKNOWN = -1  # in files: how many images the statistics are of
UNREADABLE = (OSError, ValueError)
"""What `varlit.arrays` raises on files that are no .npz, or damaged ones."""


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

    def state_dict(self) -> dict[str, Tensor]:
        """The sums as plain tensors on the CPU."""
        return {
            "sum": self._sum.cpu(),
            "products": self._products.cpu(),
            "count": torch.tensor(self.count),
        }

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums of another's `state_dict`.

        Raises:
            UserError: If they are of other features.
        """
        dim = len(self._sum)
        if state["sum"].shape != (dim,) or state["products"].shape != (dim, dim):
            raise UserError(
                f"the saved sums are of {state['sum'].numel()} features; expected {dim}. Were "
                "they made by another network? Remove them to begin anew"
            )
        device = self._sum.device
        self._sum = self._sum + state["sum"].to(device)
        self._products = self._products + state["products"].to(device)
        self.count += int(state["count"])

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


def check_enough(statistics: FeatureStatistics, what: str, allow_few: bool = False) -> str:
    """Refuse fewer images than features: their covariance is singular, and so is the distance.

    Args:
        statistics: Of a known number of images; None passes.
        what: Whose they are, in words: `generated`, `reference`.
        allow_few: Whether a number that compares with nothing is wanted all the same.

    Returns:
        A remark to put beside the number; empty where there are enough.

    Raises:
        UserError: If there are too few and that is not allowed.
    """
    count, dim = statistics.count, len(statistics.mean)
    if count is None or count > dim:
        return ""
    remark = f"{count:,} {what} images for {dim:,} features: the distance is far too large"
    if not allow_few:
        raise UserError(
            f"{remark}; expected more than {dim:,}, and 50,000 for a figure to quote. --quick "
            "measures all the same, and says so"
        )
    return remark


def read_statistics(path: Path, keys: tuple[str, str] = ("mu", "sigma")) -> FeatureStatistics:
    """Read `mu` and `sigma` of an .npz: ADM's reference batches, pytorch-fid's, or our own.

    Args:
        path: The file.
        keys: What mean and covariance are called there; ADM's of sFID are `mu_s`, `sigma_s`.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"no reference statistics at {path}; give an .npz with `mu` and `sigma`")
    try:
        arrays, found = read_arrays(path, *keys, "count"), sorted(array_names(path))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an .npz ({error})") from error
    if not set(keys) <= arrays.keys():
        raise UserError(
            f"{path} holds {found}; expected `{keys[0]}` and `{keys[1]}`, the reference "
            "statistics that ADM's VIRTUAL_imagenet256_labeled.npz holds among others"
        )
    mean, cov = (arrays[key] for key in keys)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: {keys[0]} must be (D,) and {keys[1]} (D, D); got {mean.shape} and {cov.shape}"
        )
    are_floats = mean.dtype.kind == cov.dtype.kind == "f"
    if not are_floats or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(
            f"{path}: {keys[0]} and {keys[1]} must be finite numbers; got {mean.dtype} and "
            f"{cov.dtype}, or NaN among them. Fetch or make the file anew"
        )
    if not np.allclose(cov, cov.T, rtol=1e-3, atol=1e-6 * np.abs(cov).max(initial=0)):
        raise UserError(
            f"{path}: {keys[1]} must be a covariance, the same above and below its diagonal; it is "
            "not. Fetch or make the file anew"
        )
    counts = arrays.get("count", np.array(_UNKNOWN))
    if counts.size != 1 or counts.dtype.kind not in "iu" or counts < _UNKNOWN:
        raise UserError(f"{path}: count must be a number of images; fetch or make the file anew")
    count = int(counts)
    return FeatureStatistics(
        torch.from_numpy(mean).double(),
        torch.from_numpy(cov).double(),
        None if count == _UNKNOWN else count,
    )
