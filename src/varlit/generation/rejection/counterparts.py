"""Which output of a classifier speaks for which class of a model, settled before any drawing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from varlit.errors import UserError

Targets = tuple[int | None, ...]
NONE, IN_ORDER = "-", "class i is output i"
_WORDNET_ID = re.compile(r"n\d{8}")
_NUM_NAMED = 5


def counterparts(
    num_classes: int,
    class_names: Sequence[str],
    num_outputs: int,
    output_names: Sequence[str] = (),
    given: Sequence[int | None] | None = None,
) -> Targets:
    """For each class of the model the classifier's output, None where there is none.

    A list that is given decides; else equal names (case does not matter, nor `_` for a space);
    else, where both have as many classes and the model's have no names, or ImageNet's folder
    names in their order, class i is output i.

    Args:
        num_classes: Of the model.
        class_names: Of the model, where known.
        num_outputs: Of the classifier.
        output_names: Of the classifier, where known.
        given: An output or None for each class of the model.

    Raises:
        UserError: If the list does not fit, or no class has a counterpart.
    """
    if given is not None:
        return _checked(given, num_classes, num_outputs)
    if class_names and output_names and (found := _by_name(class_names, output_names)):
        return found
    is_numbered = not class_names or _is_imagenet_order(class_names)
    if num_outputs == num_classes and (is_numbered or not output_names):
        return tuple(range(num_classes))
    raise UserError(
        f"the classifier has {num_outputs} classes and the model {num_classes}"
        + (f" ({_some(class_names)})" if class_names else " without names")
        + ", and none has the same name: take a classifier of these classes, or list an output for "
        "each class of the model (classifier_classes 985,-,... with - for none)"
    )


def unmatched(targets: Targets, classes: Sequence[int]) -> list[int]:
    """Those of `classes` that the classifier has no output for; unconditional is one of them."""
    return [c for c in classes if c >= len(targets) or targets[c] is None]


def parse_outputs(text: str) -> list[int | None] | None:
    """Turn `985,-,3` into outputs; None where nothing was given.

    Raises:
        UserError: If a part is neither a number nor `-`.
    """
    if not text:
        return None
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if part != NONE and not part.isdecimal()]:
        raise UserError(
            f"classifier_classes: got `{wrong[0]}`, expected numbers of outputs, or {NONE} for a "
            "class that the classifier does not know"
        )
    return [None if part == NONE else int(part) for part in parts]


def told_outputs(targets: Targets) -> str:
    """The way back: what `parse_outputs` takes, or that it is the plain order."""
    if targets == tuple(range(len(targets))):
        return IN_ORDER
    return ",".join(NONE if output is None else str(output) for output in targets)


def _checked(given: Sequence[int | None], num_classes: int, num_outputs: int) -> Targets:
    if len(given) != num_classes:
        raise UserError(
            f"list an output of the classifier for each of the model's {num_classes} classes, none "
            f"where there is none; got {len(given)}"
        )
    for output in given:
        if output is not None and not 0 <= output < num_outputs:
            raise UserError(f"the classifier has outputs 0..{num_outputs - 1}; got {output}")
    return tuple(given)


def _by_name(class_names: Sequence[str], output_names: Sequence[str]) -> Targets | None:
    """Outputs by name; a name that the classifier has twice (ImageNet's crane) is none."""
    outputs = [_folded(name) for name in output_names]
    counts = Counter(outputs)
    place = {name: i for i, name in enumerate(outputs) if counts[name] == 1}
    found = tuple(place.get(_folded(name)) for name in class_names)
    return found if any(output is not None for output in found) else None


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _is_imagenet_order(names: Sequence[str]) -> bool:
    return all(_WORDNET_ID.fullmatch(name) for name in names) and list(names) == sorted(names)


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
