"""`varlit doctor --licences PAGE`: name, version, licence and home of every pinned package.

Licences are SPDX ids, from the packages' own metadata; what those leave open is told here by hand.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from varlit.cli.doctor.audit import read_pins
from varlit.cli.doctor.findings import Finding

Scope = Literal["runtime", "formats", "dev"]
UNKNOWN = "unknown"
NVIDIA = "LicenseRef-NVIDIA-Proprietary"

ALLOWED = frozenset(
    {
        "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
        "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib",
    }
)  # fmt: skip
"""They permit commercial use. MPL-2.0 asks that changes of its own files be shown; we make none."""

EXCEPTIONS = {
    NVIDIA: "CUDA's libraries, which torch's build for GPUs brings. Their maker's terms permit "
    "use, commercial too, and limit redistribution; varlit redistributes none, and a torch for "
    "CPUs needs none. Read the terms before you ship them in an image of a container.",
}
"""Licences that are no open ones, and why they are borne."""

BY_HAND = {
    "cuda-toolkit": (NVIDIA, "an empty package that names NVIDIA's; says nothing of itself"),
    "jinja2": ("BSD-3-Clause", "its licence file"),
    "lpips": ("BSD-2-Clause", "its licence file"),
    "mpmath": ("BSD-3-Clause", "its licence file"),
    "nvidia-cusparselt-cu13": (NVIDIA, "says `NVIDIA Proprietary Software`"),
    "omegaconf": ("BSD-3-Clause", "its licence files, ANTLR's parser in it included"),
    "python-dateutil": ("Apache-2.0 OR BSD-3-Clause", "its licence file; says `Dual License`"),
    "scipy": ("BSD-3-Clause", "its licence file"),
    "sympy": ("BSD-3-Clause", "its licence file"),
    "torchvision": ("BSD-3-Clause", "its licence file; says `BSD`"),
}
"""By canonical name: the licence, and where that is written."""

SPOKEN = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""What packages write for an SPDX id. `BSD License` is two of them, so it is not here."""


@dataclass(frozen=True)
class Package:
    """A pinned package as it is listed."""

    name: str
    version: str
    scope: Scope
    licence: str
    home: str


def write_page(pins: Path, page: Path) -> Iterator[Finding]:
    """Write the page, and say which licences of the runtime are not allowed.

    Args:
        pins: Lines of name==version, all of them installed.
        page: The Markdown file.

    Raises:
        UserError: If the page cannot be written.
    """
    from varlit.data.whole_files import write_bytes

    packages, missing = list_packages(pins)
    if missing:
        yield "fix", "licences", f"not installed: {', '.join(missing)}; make setup; nothing written"
        return
    write_bytes(page, render(packages).encode())
    yield "ok", "licences", f"{len(packages)} packages in {page}"
    for package in refused(packages):
        yield "fix", "licences", f"{package.name}: {package.licence}; replace it, or say why it may"


def list_packages(pins: Path) -> tuple[list[Package], list[str]]:
    """Describe the pinned packages; second, the names of those that are not installed so."""
    packages, missing = [], []
    runtime, formats = needed_by("varlit", ()), needed_by("varlit", ("formats",))
    for line in read_pins(pins):
        name, version = line.split("==")
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found = None
        if found is None or found.version.partition("+")[0] != version:
            missing.append(name)
            continue
        key = canonical(name)
        scope: Scope = "runtime" if key in runtime else ("formats" if key in formats else "dev")
        packages.append(Package(name, version, scope, licence_of(found), home_of(found)))
    return sorted(packages, key=lambda package: package.name.lower()), missing


def refused(packages: Iterable[Package]) -> list[Package]:
    """Return the packages that users run and whose licence is neither allowed nor excepted."""
    used = (package for package in packages if package.scope != "dev")
    return [p for p in used if not is_allowed(p.licence) and p.licence not in EXCEPTIONS]


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression leaves a choice of which every part is allowed."""
    choices = expression.replace("(", "").replace(")", "").split(" OR ")
    return any(all(part in ALLOWED for part in choice.split(" AND ")) for choice in choices)


def licence_of(found: metadata.Distribution) -> str:
    """Return the SPDX expression of a package, or that it is unknown."""
    if expression := _field(found, "License-Expression"):
        return expression
    if told := BY_HAND.get(canonical(_field(found, "Name"))):
        return told[0]
    marks = found.metadata.get_all("Classifier") or []
    spoken = [mark.rpartition(" :: ")[2] for mark in marks if mark.startswith("License")]
    for text in (_field(found, "License"), *spoken):
        expression = SPOKEN.get(text, text)
        if is_allowed(expression):
            return expression
    return UNKNOWN


def home_of(found: metadata.Distribution) -> str:
    """Return where a package lives; pages of a registry say nothing more than its name."""
    links = [link.partition(", ") for link in found.metadata.get_all("Project-URL") or []]
    by_label = {label.lower(): url for label, _, url in links}
    wanted = ("homepage", "home", "source", "source code", "repository", "github", "code")
    known = [_field(found, "Home-page"), *(by_label.get(label, "") for label in wanted)]
    known += list(by_label.values())
    return next((url for url in known if url and "pypi" not in url), "-")


def _field(found: metadata.Distribution, name: str) -> str:
    values = found.metadata.get_all(name)
    return str(values[0]) if values else ""


def needed_by(name: str, extras: Sequence[str]) -> set[str]:
    """Return the canonical names of all that a package needs here, at any depth."""
    from packaging.requirements import Requirement

    seen: set[tuple[str, str]] = set()
    todo = [(name, extra) for extra in ("", *extras)]
    while todo:
        key, extra = todo.pop()
        if (key, extra) in seen:
            continue
        seen.add((key, extra))
        try:
            lines = metadata.requires(key) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                target = canonical(requirement.name)
                todo += [(target, inner) for inner in ("", *requirement.extras)]
    return {key for key, _ in seen}


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def render(packages: Sequence[Package]) -> str:
    """Write the page."""
    count = {scope: sum(p.scope == scope for p in packages) for scope in ("runtime", "formats")}
    lines = [
        "# Licences",
        "",
        "Written by `varlit doctor --licences docs/licences.md` from the packages' own metadata; a",
        "test compares it with `constraints.txt`. varlit itself: MIT.",
        "",
        f"{len(packages)} packages are pinned: {count['runtime']} are needed to run, "
        f"{count['formats']} more by",
        "`formats`, the others for tests and checks. Licences of the first two must be one of:",
        ", ".join(sorted(ALLOWED)) + ".",
        "",
        "Exceptions:",
        "",
        *(f"- {name}: {reason}" for name, reason in EXCEPTIONS.items()),
        "",
        "Told by hand, where metadata leave it open:",
        "",
        *(f"- {name}: {licence}. Source: {why}." for name, (licence, why) in BY_HAND.items()),
        "",
        "| package | version | for | licence | home |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {p.name} | {p.version} | {p.scope} | {p.licence} | {p.home} |" for p in packages]
    return "\n".join(lines) + "\n"
