"""What is on the page, as the command line that makes it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from varlit.page.requests import DrawRequest

NO_CLASS = "none"  # as `varlit sample` calls it, whatever classes are called
DEFAULT_GUIDANCE = "var"
PICTURE_FILE, MASK_FILE = "picture.png", "mask.png"
"""As which the page saves what an edit starts from."""


@dataclass(frozen=True)
class Opened:
    """What `varlit demo` was given, as far as other commands need it."""

    run: str
    num_classes: int
    class_names: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    """Such as `--root elsewhere`, where they differ from the defaults."""


def command_line(request: DrawRequest, opened: Opened) -> str:
    """The command that draws the pictures of a request, quoted for a shell."""
    settings, edit = request.settings, request.edit
    label, count = class_word(request.label, opened), str(request.num_variants)
    if edit is None:
        words = ["varlit", "sample", opened.run, "--classes", label or NO_CLASS]
        words += ["--per_class", count]
    else:
        words = ["varlit", "edit", opened.run, PICTURE_FILE, "--mask", MASK_FILE]
        words += [*(["--class", label] if label else []), "--variants", count]
        words += ["--paste"] if edit.settings.keep_known_pixels else []
        for flag in ("hide_masked", "free_first_scale", "refit_known"):
            words += [f"--{flag}"] if getattr(edit.settings, flag) else []
    words += ["--cfg_scale", _short(settings.cfg_scale)]
    words += ["--guidance", settings.guidance] if settings.guidance != DEFAULT_GUIDANCE else []
    words += ["--top_k", str(settings.top_k)]
    words += ["--top_p", _short(settings.top_p), "--seed", str(request.seed)]
    words += ["--more_smooth"] if settings.more_smooth else []
    return shlex.join([*words, *opened.flags])


def class_word(label: int, opened: Opened) -> str:
    """A class by its own name where a command line can have it, else by its number.

    `#3` is the number where another class is called 3. The unconditional class has no word.
    """
    names = opened.class_names
    if label >= opened.num_classes:
        return ""
    if label < len(names) and is_typed(names[label]) and names.count(names[label]) == 1:
        return names[label]
    return f"#{label}" if str(label) in names else str(label)


def is_typed(name: str) -> bool:
    """Whether a name stays one word in a list with commas, and means that class alone."""
    is_word = bool(name) and name == name.strip() and "," not in name and name.isprintable()
    return is_word and not name.startswith(("-", "#")) and name.casefold() != NO_CLASS


def _short(value: float) -> str:
    """The shortest text that reads as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
