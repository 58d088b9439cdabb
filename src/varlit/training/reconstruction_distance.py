"""rFID: how far reconstructions are from the very images that they were made of.

It is measured by `varlit.metrics.measures`, as all distances are, and is a plain object: its
network is in no checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.measures import Measures, MeasureSettings, measure
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.ranks import in_all, place_among_ranks
from varlit.metrics.references import Reference, make_reference
from varlit.training.evaluation_protocol import versions

_KEPT = ("num_images", "reference", "reference_images", "rounding")


class ReconstructionDistance:
    """Gathers features of images and of their reconstructions, on any number of processes.

    A failure amid a pass, such as NaN in a reconstruction, is kept until `compute`: all processes
    then hear of it at one place, and none waits for another.

    Args:
        network: What looks at images.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network
        self.protocol: dict[str, Any] = network.protocol()
        self._reference: Reference | None = None
        self._device = torch.device("cpu")
        self.begin()

    def begin(self) -> None:
        """Start a pass; images that were all seen once are the same in the next one."""
        # Neither rows nor logits: nothing else than a distance is wanted.
        self._real, self._fake = (ImageFeatures(self.network, 0, with_logits=False) for _ in "ab")
        self._count = 0
        self._error: Exception | None = None

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Look at images (B, 3, H, W) in [-1, 1] and at what was made of them."""
        if self._error is not None:
            return
        rank, world_size = place_among_ranks()
        ids = rank + world_size * torch.arange(self._count, self._count + len(images))
        self._count += len(images)
        self._device = images.device
        try:
            if self._reference is None:
                self._real.update(ids, images)
            self._fake.update(ids, reconstructions)
        # Whatever it was: what is measured besides is worth having.
        except Exception as error:
            self._error = error

    def compute(self) -> Measures:
        """The distance over all processes; every one of them must call it.

        Raises:
            UserError: If an image holds NaN or there are none.
            Exception: Whatever the network raised, on every process.
        """
        in_all(self._raise_error)
        if self._reference is None:
            # The spatial distance costs another root, and nobody quotes it of a tokenizer.
            made = make_reference(self._real, "the very images", "")
            self._reference = Reference(
                made.name, "", made.network, made.network_hash, made.pool, image_px=made.image_px
            )
        found = measure(self._fake, self._reference, MeasureSettings(allow_few=True))
        self.protocol = {
            **self.network.protocol(),
            **{name: found.protocol[name] for name in _KEPT},
            "is_quick": found.is_quick,
            "remarks": list(found.remarks),
            "versions": versions(self._device),
        }
        return found

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def told_distance(found: Measures) -> str:
    """How a distance was measured, in a line."""
    protocol = found.protocol
    quick = "; a quick look: fewer images than published figures are of" * found.is_quick
    beware = "".join(f"; beware: {remark}" for remark in found.remarks)
    return (
        f"rFID by {protocol['features']} {str(protocol['weights_sha256'])[:8]}, resized: "
        f"{protocol['resize']}, {protocol['rounding']}: {found.num_images:,} reconstructions "
        f"against the very images{quick}{beware}"
    )
