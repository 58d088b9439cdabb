"""What the page may ask for: JSON in, a typed request out, every field bounded or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from varlit.errors import UserError
from varlit.generation.editing.edits import EditSettings
from varlit.generation.sampler import SamplingSettings
from varlit.ops.filtering import GUIDANCE_KINDS
from varlit.page.pictures import read_image, read_mask

MAX_VARIANTS = 16
MAX_CFG_SCALE = 20.0
MAX_SEED = 2**32 - 1
MAX_TOP_K = 2**16  # above the number of codes it is the same as all of them
FIELDS = {
    *("label", "cfg_scale", "guidance", "top_k", "top_p", "more_smooth"),
    *("seed", "num_variants", "edit"),
}
EDIT_FIELDS = {"image", "mask", "keep_rest", "hide_masked", "free_first_scale", "refit_known"}


@dataclass(frozen=True)
class Bounds:
    """What the model sets a limit to."""

    num_classes: int
    side_px: int


@dataclass(frozen=True)
class Edit:
    """A picture and the part of it that is drawn anew."""

    image: Tensor  # (3, H, W) in [-1, 1]
    mask: Tensor  # (H, W) bool, True where it is drawn anew
    settings: EditSettings


@dataclass(frozen=True)
class DrawRequest:
    """One press of the button."""

    label: int
    """A class; `num_classes` is the unconditional one."""
    settings: SamplingSettings
    seed: int
    """Variant i is drawn from seed + i."""
    num_variants: int
    edit: Edit | None = None


def parse_request(body: bytes, bounds: Bounds) -> DrawRequest:
    """Read a request, field by field.

    Args:
        body: What was posted.
        bounds: Of the model.

    Raises:
        UserError: If it is no JSON, or a field is unknown, of another type or out of bounds.
    """
    fields = _object(_json(body), FIELDS, "a request")
    label = fields.get("label")
    settings = SamplingSettings(
        cfg_scale=_number(fields, "cfg_scale", 0.0, MAX_CFG_SCALE),
        top_k=_whole(fields, "top_k", 0, MAX_TOP_K),
        top_p=_number(fields, "top_p", 0.0, 1.0),
        guidance=_choice(fields, "guidance", GUIDANCE_KINDS),
        more_smooth=_flag(fields, "more_smooth"),
    )
    return DrawRequest(
        bounds.num_classes if label is None else _whole(fields, "label", 0, bounds.num_classes - 1),
        settings,
        _whole(fields, "seed", 0, MAX_SEED),
        _whole(fields, "num_variants", 1, MAX_VARIANTS),
        _edit(fields.get("edit"), bounds.side_px),
    )


def _edit(value: object, side_px: int) -> Edit | None:
    if value is None:
        return None
    fields = _object(value, EDIT_FIELDS, "an edit")
    settings = EditSettings(
        keep_known_pixels=_flag(fields, "keep_rest"),
        hide_masked=_flag(fields, "hide_masked"),
        free_first_scale=_flag(fields, "free_first_scale"),
        refit_known=_flag(fields, "refit_known"),
    )
    image = read_image(fields.get("image"), side_px)
    return Edit(image, read_mask(fields.get("mask"), side_px), settings)


def _json(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("the request is not valid JSON; reload the page") from None


def _refuse_constant(name: str) -> NoReturn:
    raise UserError(f"{name} is not a number that can be drawn with")


def _object(value: object, known: set[str], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} must be a JSON object; got {_told(value)}")
    if unknown := sorted(set(value) - known):
        raise UserError(
            f"{what} has no field {unknown[0][:40]!r}; known: {', '.join(sorted(known))}"
        )
    return value


def _whole(fields: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value: object = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    expected = f"{_words(name)} must be a whole number in {least}..{most}"
    raise UserError(f"{expected}; got {_told(value)}")


def _number(fields: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value: object = fields.get(name)
    # An int may be too large for a float: compared first, turned into one after that. No NaN
    # compares.
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
        return float(value)
    expected = f"{_words(name)} must be a number in {least:g}..{most:g}"
    raise UserError(f"{expected}; got {_told(value)}")


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{_words(name)} must be true or false; got {_told(value)}")
    return value


def _choice(fields: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """One of the words that are known; the first where nothing is said."""
    value = fields.get(name, known[0])
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{_words(name)} must be one of {', '.join(known)}; got {_told(value)}")
    return value


def _words(name: str) -> str:
    """The field's name as it stands on the page."""
    names = {"label": "class", "cfg_scale": "guidance", "num_variants": "variants"}
    names["guidance"] = "the kind of guidance"
    return names.get(name, name.replace("_", "-"))


def _told(value: object) -> str:
    """A value as the message repeats it: short, whatever was sent."""
    kinds = {type(None): "nothing", list: "a list", dict: "an object"}
    if type(value) in kinds:
        return kinds[type(value)]
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
