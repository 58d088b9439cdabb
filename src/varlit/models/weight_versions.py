"""Whether the weights of a network are still those that something was made of."""

from __future__ import annotations

from torch import Tensor, nn

WeightVersions = tuple[tuple[int, int], ...]


def weight_versions(network: nn.Module) -> WeightVersions:
    """Where each weight lies and how often it was written: compare two to see a change.

    It reads no weight, so it does not wait for a GPU. What is written through `.data` goes unseen,
    and so is what is written into weights that were made in inference mode.
    """
    return tuple((weight.data_ptr(), _version(weight)) for weight in network.state_dict().values())


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
