"""What is installed is pinned, comes as wheels, and runs nothing on its way in."""

import re
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from varlit.cli.doctor.audit import read_ignored, read_pins
from varlit.cli.doctor.licences import needed_by

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PINS = dict(line.split("==") for line in read_pins(ROOT / "constraints.txt"))


def recipe(target: str) -> str:
    """The commands of a make target, on one line each."""
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found, target
    return found[1].replace("\\\n", " ")


def test_all_that_varlit_needs_is_pinned() -> None:
    pinned = {canonicalize_name(name) for name in PINS}
    # pip comes with the venv and would have to replace itself.
    assert needed_by("varlit", ("formats", "dev")) - pinned == {"varlit", "pip"}


def test_the_pins_are_within_what_varlit_asks_for() -> None:
    pinned = {canonicalize_name(name): version for name, version in PINS.items()}
    project = PROJECT["project"]
    lines = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    for requirement in map(Requirement, lines):
        if requirement.name != "varlit":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_no_code_of_ours_runs_at_install() -> None:
    assert PROJECT["build-system"]["build-backend"] == "hatchling.build"
    assert "backend-path" not in PROJECT["build-system"]
    hatch = PROJECT["tool"]["hatch"]
    assert set(hatch) == {"version", "build"}, "metadata hooks run code"
    assert set(hatch["version"]) == {"path"}, "a version by `code` would run it"
    assert set(hatch["build"]) == {"targets"}, "build hooks run code"
    for target in hatch["build"]["targets"].values():
        assert not {"hooks", "dependencies"} & set(target)
    for name in ("setup.py", "setup.cfg", "hatch_build.py", "MANIFEST.in"):
        assert not (ROOT / name).exists()


def test_nothing_of_ours_runs_when_python_starts() -> None:
    for folder in ("src", "conf"):
        for pattern in ("*.pth", "sitecustomize.py", "usercustomize.py"):
            assert not list((ROOT / folder).rglob(pattern))
    points = {"scripts", "gui-scripts", "entry-points"} & set(PROJECT["project"])
    assert points == {"scripts"}, "an entry point would be loaded by other programs"


def test_what_builds_varlit_is_pinned() -> None:
    for line in PROJECT["build-system"]["requires"]:
        name, _, version = line.partition("==")
        assert re.fullmatch(r"\d[\w.]*", version), line
        assert PINS.get(name, version) == version


def test_setup_takes_wheels_and_pins_alone() -> None:
    [line] = [text for text in recipe("$(READY)").splitlines() if " pip install " in text]
    assert "--only-binary :all:" in line, "a source archive runs its setup.py"
    assert "-c $(CONSTRAINTS)" in line


def test_make_check_asks_for_vulnerabilities() -> None:
    assert "$(VARLIT) doctor --audit --pins $(CONSTRAINTS)\n" in recipe("check")


def test_malicious_versions_cannot_be_pinned() -> None:
    assert PINS["lightning"] not in {"2.6.2", "2.6.3"}
    assert PINS["pytorch-lightning"] == PINS["lightning"]
    assert not [name for name in PINS if name.lower().startswith("antlr4")], "no wheel of it"


def test_ignored_vulnerabilities_end() -> None:
    for entry in read_ignored(ROOT / "pyproject.toml"):
        assert entry.since < entry.until
        assert (entry.until - entry.since).days <= 180, "look again sooner"
