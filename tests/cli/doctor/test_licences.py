"""The page of licences: complete, current, and nothing on it that users may not use."""

from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from varlit.cli import main as command_line
from varlit.cli.doctor import licences as doctor_licences
from varlit.cli.doctor.audit import read_pins
from varlit.cli.doctor.licences import (
    BY_HAND,
    EXCEPTIONS,
    NVIDIA,
    UNKNOWN,
    Package,
    canonical,
    home_of,
    is_allowed,
    licence_of,
    list_packages,
    needed_by,
    refused,
    render,
)

ROOT = Path(__file__).parents[3]
PINS, PAGE = ROOT / "constraints.txt", ROOT / "docs" / "licences.md"


def rows() -> Iterator[tuple[str, ...]]:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split(" | "))
        if len(cells) == 5 and cells[0] not in {"package", "---"}:
            yield cells


def test_the_page_lists_exactly_what_is_pinned() -> None:
    assert {f"{name}=={version}" for name, version, *_ in rows()} == set(read_pins(PINS))


def test_the_page_says_what_the_packages_say() -> None:
    listed = {row[0]: row for row in rows()}
    packages, missing = list_packages(PINS)
    assert len(packages) > len(missing), "the pins are installed, those for GPUs perhaps not"
    for package in packages:
        _, _, scope, licence, home = listed[package.name]
        assert (licence, home) == (package.licence, package.home), "write the page again"
        assert scope == package.scope or missing
    if not missing:
        assert render(packages) == PAGE.read_text(encoding="utf-8")


def test_nothing_that_users_run_is_unknown_or_forbids_commerce() -> None:
    page = [Package(*row) for row in rows()]  # type: ignore[arg-type]
    assert refused(page) == []
    assert all(package.licence != UNKNOWN for package in page)
    assert sum(package.scope == "runtime" for package in page) > 50
    assert {p.licence for p in page if not is_allowed(p.licence)} == set(EXCEPTIONS)


@pytest.mark.parametrize("licence", [UNKNOWN, "AGPL-3.0-only", "CC-BY-NC-4.0", "MIT AND GPL-3.0"])
def test_other_licences_are_refused_where_users_run_them(licence: str) -> None:
    assert refused([Package("toy", "1", "runtime", licence, "-")])
    assert refused([Package("toy", "1", "formats", licence, "-")])
    assert not refused([Package("toy", "1", "dev", licence, "-")])
    assert not refused([Package("toy", "1", "runtime", f"MIT OR {licence}", "-")])


def test_told_by_hand_is_only_what_metadata_leave_open() -> None:
    names = {canonical(row[0]) for row in rows()}
    assert set(BY_HAND) <= names
    for name in BY_HAND:
        try:
            found = doctor_licences.metadata.distribution(name)
        except doctor_licences.metadata.PackageNotFoundError:
            continue
        assert not found.metadata.get_all("License-Expression"), f"{name} says it itself by now"


class Found:
    """A package with the given fields."""

    def __init__(self, **fields: str | list[str]) -> None:
        self.metadata = Message()
        for key, values in fields.items():
            for value in [values] if isinstance(values, str) else values:
                self.metadata[key.replace("_", "-")] = value


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT AND ISC", "License": "other"}, "MIT AND ISC"),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        ({"License": "a long text", "Classifier": "License :: OSI :: MIT License"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, UNKNOWN),
        ({"License": "UNKNOWN"}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_licences_are_read_and_not_guessed(fields: dict[str, str], licence: str) -> None:
    found: Any = Found(Name="toy", **fields)
    assert licence_of(found) == licence


def test_a_home_is_no_page_of_a_registry() -> None:
    links = ["Homepage, https://pypi.example/project/toy", "Source, https://example.org/toy"]
    found: Any = Found(Name="toy", Project_URL=links)
    assert home_of(found) == "https://example.org/toy"
    found = Found(Name="toy")
    assert home_of(found) == "-"


def test_what_varlit_needs_is_followed_to_the_end() -> None:
    runtime, formats = needed_by("varlit", ()), needed_by("varlit", ("formats",))
    assert {"torch", "sympy", "mpmath", "docstring-parser"} <= runtime
    assert not {"pytest", "webdataset", "ruff"} & runtime
    assert {"webdataset", "braceexpand"} <= formats


def test_the_page_is_written_and_what_is_refused_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text(f"numpy=={doctor_licences.metadata.version('numpy')}\n")
    words = ["doctor", "--licences", str(tmp_path / "page.md"), "--pins", str(pins)]
    assert command_line.main(words) == 0
    assert "| numpy |" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr(doctor_licences, "licence_of", lambda found: "AGPL-3.0-only")
    assert command_line.main(words) == 1
    assert "fix   licences     numpy: AGPL-3.0-only" in capsys.readouterr().out


def test_a_page_is_not_written_from_half_of_the_packages(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("numpy==0.0.1\nno-such-package==1\n")
    page = tmp_path / "page.md"
    [(verdict, _, text)] = doctor_licences.write_page(tmp_path / "pins.txt", page)
    assert (verdict, page.exists()) == ("fix", False)
    assert "numpy, no-such-package" in text


def test_nvidias_licence_is_an_exception_with_a_reason() -> None:
    assert not is_allowed(NVIDIA)
    assert len(EXCEPTIONS[NVIDIA]) > 50
