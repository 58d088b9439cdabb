"""Which columns of a Hugging Face table are images and labels, and what the label column says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from varlit.errors import UserError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")

Kind = Literal["image", "struct", "binary", "class", "number", "text", "other"]


@dataclass(frozen=True)
class Columns:
    """Names of the two columns, and what kind the labels are."""

    image: str
    label: str
    label_kind: Kind


def choose_columns(features: Any, place: str) -> Columns:
    """Find the image and the label column.

    Args:
        features: `datasets.Features` of the table.
        place: What the user wrote.

    Raises:
        UserError: If there is none, or if several could be meant.
    """
    kinds = {name: _kind(feature) for name, feature in features.items()}
    image = _choose(kinds, IMAGE_COLUMNS, ("image", "struct", "binary"))
    label = _choose(kinds, LABEL_COLUMNS, ("class",), also=("number", "text"))
    if not image or not label:
        wanted = "image" if not image else "label"
        raise UserError(
            f"{place} has the columns {', '.join(features)}: which holds the {wanted}s is not "
            f"clear. Expected one named {wanted}; rename it with `datasets`."
        )
    return Columns(image, label, kinds[label])


def read_class_names(table: Any, columns: Columns, place: str) -> tuple[str, ...]:
    """Return the names that the table gives, else its sorted labels, else numbers."""
    if columns.label_kind == "class":
        return tuple(table.features[columns.label].names)
    labels = _complete(table, columns, place).unique()
    if columns.label_kind == "text":
        return tuple(sorted(labels.to_pylist()))
    return tuple(str(number) for number in range(max(labels.to_pylist(), default=-1) + 1))


def read_labels(table: Any, columns: Columns, class_names: Sequence[str], place: str) -> np.ndarray:
    """Return the labels of a table as places among `class_names`, in one go.

    Returns:
        (N,) int64.

    Raises:
        UserError: If a label is missing (-1) or not among the classes of the training set.
    """
    column = _complete(table, columns, place)
    if columns.label_kind == "text":
        import pyarrow
        import pyarrow.compute

        known = pyarrow.array(class_names, type=column.type)
        column = pyarrow.compute.fill_null(pyarrow.compute.index_in(column, known), -2)
    labels = column.to_numpy().astype(np.int64)
    names = getattr(table.features.get(columns.label), "names", class_names)
    if tuple(names) != tuple(class_names):
        raise UserError(f"{place} has other class names than the training set: both need the same.")
    num_missing = int((labels == -1).sum())
    if num_missing:
        raise UserError(
            f"{num_missing:,} of {len(labels):,} images of {place} have the label -1, which means "
            "none: leave them out."
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= len(class_names)):
        raise UserError(
            f"{place} has labels beyond the {len(class_names)} classes of the training set: both "
            "sets need the same classes."
        )
    return labels


def read_names(table: Any, columns: Columns) -> np.ndarray:
    """Return a name for each row: the file names that the table keeps, where they tell rows apart.

    Returns:
        (N,) fixed-width bytes.
    """
    import pyarrow
    import pyarrow.compute

    column = table.data.column(columns.image)
    if pyarrow.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        paths = pyarrow.compute.struct_field(column, "path")
        # A path from the root is that of a cache, which lies elsewhere on another machine.
        relative = paths.null_count == 0 and not any(
            str(path).startswith("/") for path in paths.slice(0, 1).to_pylist()
        )
        if relative and pyarrow.compute.count_distinct(paths).as_py() == len(table):
            return np.array(paths.cast(pyarrow.binary()).to_pylist(), dtype="S")
    return np.array([b"%08d" % row for row in range(len(table))], dtype="S")


def _complete(table: Any, columns: Columns, place: str) -> Any:
    column = table.data.column(columns.label)
    if column.null_count:
        raise UserError(
            f"{column.null_count:,} of {len(column):,} images of {place} have no label: leave "
            "them out."
        )
    return column


def _choose(
    kinds: dict[str, Kind],
    names: tuple[str, ...],
    wanted: tuple[Kind, ...],
    also: tuple[Kind, ...] = (),
) -> str:
    """Prefer a known name; else the only column of a wanted kind; "" for none."""
    for name in names:
        if kinds.get(name) in wanted + also:
            return name
    for kind in wanted:
        found = [name for name in kinds if kinds[name] == kind]
        if len(found) == 1:
            return found[0]
    return ""


def _kind(feature: Any) -> Kind:
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, dict) and "bytes" in feature:
        return "struct"
    dtype = getattr(feature, "dtype", "") if isinstance(feature, datasets.Value) else ""
    if dtype in ("binary", "large_binary"):
        return "binary"
    if dtype in ("string", "large_string"):
        return "text"
    return "number" if dtype.startswith(("int", "uint")) else "other"
