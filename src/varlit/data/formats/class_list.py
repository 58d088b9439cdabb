"""Names of classes in a text file, for formats that keep labels as numbers alone."""

from __future__ import annotations

from pathlib import Path

from varlit.errors import UserError

MAX_NUMBERED_CLASSES = 100_000


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read one class name a line, the first being that of label 0.

    Raises:
        UserError: If the file cannot be read or holds no names.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"cannot read the class names in '{path}': {reason}.") from error
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names):
        raise UserError(f"'{path}' has an empty line or no line: expected one class name a line.")
    return names


def numbered_classes(count: int, place: str, file: str) -> tuple[str, ...]:
    """Name classes that have no names by their numbers.

    Args:
        count: How many labels say that there are.
        place: What holds the labels, as the message says it.
        file: Where names would be found.

    Raises:
        UserError: If so many can only be a mistake.
    """
    if count > MAX_NUMBERED_CLASSES:
        raise UserError(
            f"{place} have the label {count - 1}: expected labels from 0 on; above "
            f"{MAX_NUMBERED_CLASSES:,} classes want names in {file}."
        )
    return tuple(map(str, range(count)))
