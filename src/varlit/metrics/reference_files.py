"""References on disk: what is kept of real images, in an .npz that others can read too."""

from __future__ import annotations

import io
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varlit.arrays import read_arrays
from varlit.metrics.feature_rows import chosen
from varlit.metrics.frechet import UNREADABLE, FeatureStatistics, read_statistics
from varlit.metrics.networks import FeatureNetwork

VERSION = 1


@dataclass(frozen=True)
class Reference:
    """Real images, as a feature network saw them."""

    name: str  # of the source, for people
    source_hash: str  # of its content
    network: str
    network_hash: str  # "" where a file does not tell; it is Inception's then
    pool: FeatureStatistics
    spatial: FeatureStatistics | None = None  # for sFID
    rows: Tensor | None = None  # (M, D) fp32, for precision, recall and KID
    image_px: int | None = None  # side of the images; None where a file does not tell

    def subset(self, count: int) -> Tensor:
        """At most `count` of the rows, by a choice that depends on their places alone."""
        assert self.rows is not None
        return self.rows[chosen(torch.arange(len(self.rows)), count)]

    def protocol(self) -> dict[str, Any]:
        """Which reference it is, as plain data."""
        return {
            "reference": self.name,
            "reference_sha256": self.source_hash,
            "reference_images": self.pool.count,
            "reference_rows": 0 if self.rows is None else len(self.rows),
        }


def write_reference(reference: Reference, path: Path) -> None:
    """Write a reference to an .npz, whole or not at all; others can read its `mu` and `sigma`."""
    count = -1 if reference.pool.count is None else reference.pool.count
    about = {
        "version": VERSION,
        "name": reference.name,
        "source_hash": reference.source_hash,
        "network": reference.network,
        "network_hash": reference.network_hash,
        "image_px": reference.image_px,
    }
    arrays = {
        "mu": reference.pool.mean.numpy(),
        "sigma": reference.pool.cov.numpy(),
        "count": np.array(count),
        "about": np.array(json.dumps(about)),
    }
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean.numpy(), "sigma_s": reference.spatial.cov.numpy()}
    if reference.rows is not None:
        arrays["rows"] = reference.rows.numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Where references are kept: in `$VARLIT_CACHE`, else varlit's folder in `~/.cache`.

    Nowhere (None) where VARLIT_CACHE is set and empty, or the user has no home.
    """
    given = os.environ.get("VARLIT_CACHE")
    if given == "":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return (Path(given) if given else Path(home) / "varlit").expanduser() / "references"
    except RuntimeError:
        return None


def read_own(path: Path, network: FeatureNetwork) -> Reference | None:
    """A file of `write_reference`; one that is missing, damaged or of other features is none."""
    try:
        pool = read_statistics(path)
        arrays = read_arrays(path)
        about = json.loads(arrays["about"].item())
        spatial = read_statistics(path, ("mu_s", "sigma_s")) if "mu_s" in arrays else None
        is_of_network = (about["network"], about["network_hash"]) == (network.name, network.hash)
        if about.pop("version") != VERSION or not is_of_network or not _is_sound(about):
            return None
        rows = arrays.get("rows")
        if rows is not None and (rows.dtype != np.float32 or rows.shape[1:] != pool.mean.shape):
            return None
        kept = None if rows is None else torch.from_numpy(rows)
        return Reference(pool=pool, spatial=spatial, rows=kept, **about)
    except (KeyError, TypeError, AttributeError, RecursionError, *UNREADABLE):
        return None


def _is_sound(about: dict[str, Any]) -> bool:
    """Whether a file's words on itself are of the types that `write_reference` writes."""
    size = about["image_px"]
    has_size = size is None or (type(size) is int and size > 0)
    return has_size and isinstance(about["name"], str) and isinstance(about["source_hash"], str)
