"""Whether plain data are of the type that a field says: what JSON and YAML hold may be anything."""

import re
import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; lists pass for tuples, whole numbers for floats.

    Args:
        value: Plain data.
        hint: int, float, bool, str, None, a Literal, a tuple of such or a union of such. Floats
            must be finite.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inside)
    if origin in (UnionType, Union):
        return any(fits(value, choice) for choice in inside)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if inside[1:] == (...,):
            return all(fits(part, inside[0]) for part in value)
        return len(value) == len(inside) and all(map(fits, value, inside))
    if isinstance(value, bool) or hint is bool:
        return type(value) is hint
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def as_plain(value: Any, hint: Any) -> Any:
    """Lists as tuples; for a float also `1e-4`, which YAML 1.1 takes for text."""
    if isinstance(value, list):
        return tuple(value)
    is_number = hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value)
    return float(value) if is_number else value


def told(hint: Any) -> str:
    """A type in words for a message."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return words.get(hint) or str(hint).replace("typing.", "").replace("NoneType", "none")
