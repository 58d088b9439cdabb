"""What the classes of a model are called on the page."""

from __future__ import annotations

from collections.abc import Sequence

from varlit.data.class_titles import titles

NUM_IMAGENET = 1000


def shown_titles(num_classes: int, class_names: Sequence[str]) -> tuple[str, ...]:
    """A title for every class, or none at all where nothing is known.

    The official checkpoints name no classes. They have ImageNet's thousand in its usual order, and
    a thousand classes without names are taken for those.
    """
    if class_names or num_classes != NUM_IMAGENET:
        return titles(class_names)
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(str(info.index_to_description(i)) for i in range(num_classes))
