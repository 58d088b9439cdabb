"""What samples are compared with: features of real images, computed once and kept.

A reference comes from a stream of images or from an .npz: ADM's (images, statistics or both),
pytorch-fid's or our own. Computed ones are cached by the content of their source and by the
network that looked at it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from varlit.arrays import array_names
from varlit.errors import UserError
from varlit.metrics.frechet import (
    UNREADABLE,
    FeatureStatistics,
    check_enough,
    read_statistics,
)
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork, sha256
from varlit.metrics.npz_images import NpzImages
from varlit.metrics.ranks import in_all, place_among_ranks, sum_over_ranks
from varlit.metrics.reference_files import (
    VERSION,
    Reference,
    cache_folder,
    read_own,
    write_reference,
)

NUM_ROWS = 10_000  # of real images, for precision, recall and KID: as many as ADM's files hold


def check_reference(
    reference: Reference,
    network: FeatureNetwork,
    image_px: int | None = None,
    allow_few: bool = False,
) -> str:
    """Refuse a reference that does not fit, before anything is drawn.

    Args:
        reference: Any.
        network: What will look at the samples.
        image_px: Side of the samples.
        allow_few: Whether fewer images than features are let pass.

    Returns:
        A remark to put beside the numbers; mostly empty.

    Raises:
        UserError: If features, network or the size of the images differ, or the images are few.
    """
    dim = len(reference.pool.mean)
    is_other = reference.network_hash not in ("", network.hash)
    if is_other or reference.network != network.name or dim != network.feature_dim:
        raise UserError(
            f"the reference {reference.name} is of {dim} features of {reference.network}"
            f"{' with other weights' if is_other else ''}; the samples will be seen by "
            f"{network.name} ({network.feature_dim}). Give a reference made by the same network"
        )
    if image_px and reference.image_px and image_px != reference.image_px:
        raise UserError(
            f"the reference {reference.name} is of images of {reference.image_px} px; the samples "
            f"have {image_px} px. Give the reference of that size"
        )
    remarks = [check_enough(reference.pool, "reference", allow_few)]
    if reference.image_px is None:
        lacks = "their size" if reference.pool.count else "their number and size"
        remarks.append(
            f"the reference {reference.name} holds statistics of images and not {lacks}: one of "
            "another size would not be noticed"
        )
    return "; ".join(filter(None, remarks))


def make_reference(features: ImageFeatures, name: str, source_hash: str) -> Reference:
    """The reference of real images that were all looked at; every process must call it.

    Args:
        features: Of this process; they are joined here.
        name: Of the set, such as `imagenet val`.
        source_hash: Of its content.
    """
    whole = features.reduced()
    if not whole.count:
        raise UserError(f"the reference {name} holds no images; give a set that does")
    return Reference(
        name=name,
        source_hash=source_hash,
        network=whole.network.name,
        network_hash=whole.network.hash,
        pool=whole.pool.statistics(),
        spatial=whole.spatial.statistics() if whole.spatial is not None else None,
        rows=whole.rows.rows,
        image_px=whole.image_px,
    )


def cached_reference(
    name: str,
    source_hash: str,
    network: FeatureNetwork,
    gather: Callable[[ImageFeatures], None],
    num_rows: int = NUM_ROWS,
) -> Reference:
    """The reference of a set of images, from the cache or computed; every process must call it.

    Args:
        name: Of the set, for people.
        source_hash: Of its content, with how the images are cut and resized.
        network: What looks at them.
        gather: Calls `update` with this process's share of the images, where there is no cache.
        num_rows: How many images' features to keep; 0 = all.

    Raises:
        UserError: On every process, if one of them cannot read its share.
    """
    path = _cache_file(source_hash, network, num_rows)
    kept = read_own(path, network) if path is not None else None
    rank, world_size = place_among_ranks()
    # All or none: a process that computes waits for the others.
    num_kept = int(sum_over_ranks(torch.tensor(0 if kept is None else 1)))
    if kept is not None and num_kept == world_size:
        return replace(kept, name=name)
    features = ImageFeatures(network, num_rows or None, with_logits=False)
    in_all(lambda: gather(features))
    made = make_reference(features, name, source_hash)
    if path is not None and rank == 0:
        try:
            write_reference(made, path)
        except OSError as error:
            warnings.warn(f"the reference is not kept in {path}: {error}", stacklevel=2)
    return made


def read_reference(
    path: str | Path,
    network: FeatureNetwork,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    num_rows: int = NUM_ROWS,
) -> Reference:
    """The reference in an .npz; every process must call it.

    `mu` and `sigma` in a file of others are taken for Inception's; `arr_0`, images, is looked at
    by any network, and for precision, recall and KID in any case. Where a file holds both, as
    ADM's do, FID is measured against its statistics (of the whole training set) and the rest
    against its images (10,000 of them).

    Args:
        path: The file.
        network: What looks at images.
        device: Where.
        batch_size: Images at a time.
        num_rows: How many images' features to keep; 0 = all.

    Raises:
        UserError: If the file is missing or damaged, or holds nothing for this network; on every
            process, if it is so for one.
    """
    path = Path(path).expanduser()
    held, fingerprint = in_all(lambda: (_held(path), sha256(path)))
    if "about" in held:
        return in_all(lambda: replace(_own(path, network), source_hash=fingerprint))
    has_statistics = network.is_inception and {"mu", "sigma"} <= held
    seen = None
    if "arr_0" in held:
        images = in_all(lambda: NpzImages(path))

        def gather(features: ImageFeatures) -> None:
            for ids, batch in images.batches(batch_size, *place_among_ranks()):
                features.update(ids, batch.to(device))

        seen = cached_reference(path.name, fingerprint, network, gather, num_rows)
    if seen is not None and not has_statistics:
        return seen
    if not has_statistics:
        raise UserError(
            f"{path} holds {sorted(held)}; expected `arr_0` (images)"
            + (", or `mu` and `sigma`" if network.is_inception else f" for {network.name} to see")
        )
    has_spatial = {"mu_s", "sigma_s"} <= held

    def read() -> tuple[FeatureStatistics, FeatureStatistics | None]:
        spatial = read_statistics(path, ("mu_s", "sigma_s")) if has_spatial else None
        return read_statistics(path), spatial

    pool, spatial = in_all(read)
    return Reference(
        name=path.name,
        source_hash=fingerprint,
        network=network.name,
        network_hash="",
        pool=pool,
        spatial=spatial,
        rows=None if seen is None else seen.rows,
        image_px=None if seen is None else seen.image_px,
    )


def _own(path: Path, network: FeatureNetwork) -> Reference:
    own = read_own(path, network)
    if own is None:
        raise UserError(
            f"{path} is no reference by {network.name} with these weights; make one with it"
        )
    return replace(own, name=path.name)


def _cache_file(source_hash: str, network: FeatureNetwork, num_rows: int) -> Path | None:
    folder = cache_folder()
    parts = (VERSION, source_hash, network.name, network.hash, network.resize, num_rows)
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return None if folder is None else folder / f"{key}.npz"


def _held(path: Path) -> set[str]:
    """Names of the arrays in an .npz.

    Raises:
        UserError: If there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(
            f"no reference at {path}; give an .npz with `mu` and `sigma` or with images, such as "
            "ADM's VIRTUAL_imagenet256_labeled.npz"
        )
    try:
        return set(array_names(path))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an .npz ({error})") from error
