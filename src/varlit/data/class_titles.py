"""Names of classes for people: what an ImageNet folder such as n02099601 shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timm.data import ImageNetInfo

SYNSET = re.compile(r"n\d{8}")


def titles(class_names: Sequence[str]) -> tuple[str, ...]:
    """Name classes that are called by a WordNet synset; others keep their names.

    The first of a synset's words is taken, as timm knows them for every class of ImageNet-21k.
    Where classes share it, the first keeps it and the others add their synset: `crane` and
    `crane (n03126707)`.

    Args:
        class_names: In the order of the labels.

    Returns:
        As many names, in the same order, all different if the given ones are.
    """
    if not any(SYNSET.fullmatch(name) for name in class_names):
        return tuple(class_names)
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    taken = {name for name in class_names if not SYNSET.fullmatch(name)}
    found = []
    for name in class_names:
        title = _first_word(info, name)
        found.append(title if title == name or title not in taken else f"{title} ({name})")
        taken.add(title)
    return tuple(found)


def _first_word(info: ImageNetInfo, name: str) -> str:
    if not SYNSET.fullmatch(name):
        return name
    try:
        return str(info.label_name_to_description(name)).split(",")[0].strip()
    except KeyError:  # a synset that no ImageNet has
        return name
