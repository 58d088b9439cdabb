"""What a network saw in one set of images, gathered batch by batch on any number of processes.

Sums for the Frechet distances, rows by sample id for all else. It can be saved at any moment, and
parts that were gathered apart join into the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.metrics.feature_rows import FeatureRows
from varlit.metrics.frechet import FeatureSums
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.metrics.ranks import concatenate_over_ranks
from varlit.metrics.reconstruction import Rounding, to_uint8


class ImageFeatures:
    """Gathers the features of one set of images.

    Args:
        network: What looks at them.
        max_rows: Samples whose features are kept for precision, recall and KID; None = all.
            50,000 of Inception are 0.4 GB.
        with_logits: Whether logits are kept for the inception score, of all samples.
        rounding: How images in [-1, 1] become uint8.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        max_rows: int | None = None,
        with_logits: bool = True,
        rounding: Rounding = "nearest",
    ) -> None:
        self.network, self.rounding = network, rounding
        self.image_px: int | None = None  # side of the images; None before the first
        self.pool = FeatureSums(network.feature_dim)
        self.spatial = FeatureSums(network.spatial_dim) if network.spatial_dim else None
        self.rows = FeatureRows(network.feature_dim, max_rows)
        has_logits = with_logits and network.num_classes is not None
        self.logits = FeatureRows(network.num_classes or 0) if has_logits else None
        self._ids = [torch.zeros(0, dtype=torch.int64)]

    @property
    def count(self) -> int:
        """Number of images so far."""
        return sum(map(len, self._ids))

    @property
    def ids(self) -> Tensor:
        """Ids (N,) of the samples so far, ascending: what a resumed evaluation may skip."""
        self._ids = [torch.cat(self._ids).sort().values]
        return self._ids[0]

    def update(self, ids: Tensor, images: Tensor) -> None:
        """Look at images.

        Args:
            ids: (B,) whole numbers, each sample's own.
            images: (B, 3, H, W) on any device, uint8 or in [-1, 1].

        Raises:
            UserError: If an image holds NaN or is of another size than those before.
        """
        check_images(ids, images)
        if not len(ids):  # a process whose share is empty
            return
        side = int(images.shape[-1])
        if self.image_px not in (None, side):
            raise UserError(
                f"all images of a set must be of one size; got {side} px after {self.image_px} px"
            )
        self.image_px = side
        self.add(ids, self.network(to_uint8(images, self.rounding)))

    def add(self, ids: Tensor, features: Features) -> None:
        """Take features of samples `ids` (B,) that were extracted elsewhere."""
        self._ids.append(ids.cpu().to(torch.int64))
        self.pool.update(features.pool)
        if self.spatial is not None:
            assert features.spatial is not None
            self.spatial.update(features.spatial)
        if self.logits is not None:
            assert features.logits is not None
            self.logits.add(ids, features.logits)
        self.rows.add(ids, features.pool)

    def reduced(self) -> ImageFeatures:
        """The whole set over all processes; every process must call it.

        Raises:
            UserError: If a sample was seen twice.
        """
        whole = self._empty()
        whole._ids = [concatenate_over_ranks(self.ids)]
        whole._check_ids()
        sides = concatenate_over_ranks(torch.tensor([self.image_px or 0]))
        whole.image_px = int(sides.max()) or None
        whole.pool = self.pool.reduced()
        whole.spatial = self.spatial.reduced() if self.spatial is not None else None
        whole.rows = self.rows.reduced()
        whole.logits = self.logits.reduced() if self.logits is not None else None
        return whole

    def state_dict(self) -> dict[str, Any]:
        """All of this process, as plain tensors and text, for `torch.save`."""
        state: dict[str, Any] = {
            "network": self.network.hash,
            "rounding": self.rounding,
            "image_px": self.image_px or 0,
            "ids": self.ids,
            "pool": self.pool.state_dict(),
            "rows": self.rows.state_dict(),
        }
        if self.spatial is not None:
            state["spatial"] = self.spatial.state_dict()
        if self.logits is not None:
            state["logits"] = self.logits.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state in place of what was gathered so far."""
        fresh = self._empty()
        fresh.merge(state)
        self.__dict__.update(fresh.__dict__)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another process, or an earlier one, had saved.

        Raises:
            UserError: If it was gathered otherwise, is damaged, or shares a sample with this.
        """
        expected = (self.network.hash, self.rounding)
        try:
            if (state["network"], state["rounding"]) != expected:
                raise UserError(
                    "the saved features were made by another network or rounding; remove them to "
                    "begin anew"
                )
            side, parts = int(state["image_px"]), self._parts()
            if side and self.image_px and side != self.image_px:
                raise UserError(
                    f"the saved features are of images of {side} px; got {self.image_px} px"
                )
            if state["ids"].dtype != torch.int64:
                raise TypeError("ids of another type")
            self._ids.append(state["ids"])
            self._check_ids()
            for name, part in parts.items():
                part.merge(state[name])
            self.image_px = side or self.image_px
        except UserError:
            raise
        except KeyError as error:
            raise UserError(
                f"the saved features lack {error}; remove them to begin anew"
            ) from error
        except (TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the saved features are damaged ({type(error).__name__}); remove them to begin "
                "anew"
            ) from error

    def _parts(self) -> dict[str, FeatureSums | FeatureRows]:
        parts: dict[str, FeatureSums | FeatureRows] = {"pool": self.pool, "rows": self.rows}
        if self.spatial is not None:
            parts["spatial"] = self.spatial
        if self.logits is not None:
            parts["logits"] = self.logits
        return parts

    def _empty(self) -> ImageFeatures:
        with_logits = self.logits is not None
        return ImageFeatures(self.network, self.rows.limit, with_logits, self.rounding)

    def _check_ids(self) -> None:
        ids = self.ids
        twice = ids[:-1][ids[1:] == ids[:-1]]
        if len(twice):
            raise UserError(
                f"{len(twice)} samples were measured twice, such as sample {int(twice[0])}; every "
                "sample must be given to one process once"
            )


def check_images(ids: Tensor, images: Tensor) -> None:
    """Refuse images that no number should be made of.

    Raises:
        UserError: If the batch is of another form, or holds NaN or infinity; names the samples.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(ids) != len(images):
        raise UserError(
            f"expected images (B, 3, H, W) and an id each; got {tuple(images.shape)} and "
            f"{len(ids)} ids"
        )
    if images.is_floating_point():
        is_bad = ~images.isfinite().flatten(1).all(dim=1)  # (B,)
        if bool(is_bad.any()):
            named = ids.cpu()[is_bad.cpu()].tolist()
            raise UserError(
                f"{len(named)} of {len(images)} images hold NaN or infinity, such as sample "
                f"{named[0]}; look at the model that drew them"
            )
