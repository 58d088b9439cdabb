"""The curves of stage 2: what a step learned, scale by scale, and how it moved the weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from varlit.losses.next_scale import NextScaleTerms


def loss_scalars(terms: NextScaleTerms, scale_names: Sequence[str]) -> dict[str, Tensor]:
    """Name the terms of a loss: mean, last scale, and every scale by itself."""
    scalars = {"loss/mean": terms.loss.detach(), "loss/last_scale": terms.loss_by_scale[-1]}
    scalars |= _by_scale("scale_loss", terms.loss_by_scale, scale_names)
    if terms.accuracy is None:
        return scalars
    assert terms.accuracy_by_scale is not None
    assert terms.entropy_by_scale is not None
    scalars["accuracy/mean"] = terms.accuracy
    scalars["accuracy/last_scale"] = terms.accuracy_by_scale[-1]
    scalars |= _by_scale("scale_accuracy", terms.accuracy_by_scale, scale_names)
    return scalars | _by_scale("scale_entropy", terms.entropy_by_scale, scale_names)


class ClippingCount:
    """Share of the steps since it was last read whose gradient was clipped.

    Counts on the device: nothing waits for it before it is read.

    Args:
        counts: Where the counts are kept, as `clipped` and `clippable`.
    """

    def __init__(self, counts: dict[str, Tensor]) -> None:
        self._counts = counts

    def add(self, norm: Tensor, limit: float) -> None:
        """Count a step whose gradient had this norm."""
        above = (norm > limit).float()
        self._counts["clipped"] = above + self._counts.get("clipped", 0)
        self._counts["clippable"] = torch.ones(()) + self._counts.get("clippable", 0)

    def read(self) -> Tensor:
        """Return the share and begin anew."""
        clipped = self._counts.pop("clipped", torch.zeros(()))
        return clipped / self._counts.pop("clippable", torch.ones(()))


class UpdateRatio:
    """How far a step moves a weight, over how large it is; about 1e-3 is usual for AdamW.

    Looks at one matrix, so that it costs a copy of that and not of the network.
    """

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read
        self._before: Tensor | None = None

    def begin(self) -> None:
        """Note the weight before a step."""
        self._before = self._read().detach().clone()

    def end(self) -> Tensor | None:
        """Return |change| / |weight| after the step; None if the begin was not noted."""
        before, self._before = self._before, None
        if before is None:
            return None
        return (self._read().detach() - before).norm() / before.norm()


def _by_scale(group: str, values: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    return {f"{group}/{name}": value for name, value in zip(names, values, strict=True)}
