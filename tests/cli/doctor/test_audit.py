"""`varlit doctor --audit`: what is found stops, what cannot be asked is said, nothing hangs."""

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from varlit.cli import main as command_line
from varlit.cli.doctor import audit as doctor_audit
from varlit.cli.doctor.audit import CANARY, Ignored, audit, judge, read_ignored, read_pins
from varlit.errors import UserError

TODAY = date(2026, 11, 22)
HOLE = {"id": "PYSEC-2026-7", "aliases": ["CVE-2026-7"], "fix_versions": ["1.2"]}
BAD = {"name": "toy", "version": "1.0", "vulns": [HOLE]}
SOUND = {"name": "sound", "version": "2.0", "vulns": []}
KNOWN = {"dependencies": [{"name": "jinja2", "version": "2.11.2", "vulns": [HOLE]}]}


def verdicts(report: dict[str, Any], *ignored: Ignored) -> list[str]:
    return [verdict for verdict, _, _ in judge(report, ignored, TODAY)]


def test_a_known_hole_is_to_mend() -> None:
    [(verdict, _, text)] = judge({"dependencies": [BAD, SOUND]}, [], TODAY)
    assert (verdict, text) == ("fix", "toy 1.0: PYSEC-2026-7, mended in 1.2")
    assert verdicts({"dependencies": [SOUND]}) == ["ok"]


@pytest.mark.parametrize("name", ["PYSEC-2026-7", "CVE-2026-7"])
def test_a_hole_is_passed_over_until_its_day(name: str) -> None:
    until = Ignored(name, "not called", TODAY, TODAY)
    assert verdicts({"dependencies": [BAD]}, until) == ["warn", "ok"]
    past = Ignored(name, "not called", date(2026, 1, 1), date(2026, 11, 21))
    assert verdicts({"dependencies": [BAD]}, past) == ["fix"]


def test_what_is_ignored_for_nothing_and_what_is_unknown_is_said() -> None:
    unknown = {"name": "private", "skip_reason": "not found"}
    told = list(judge({"dependencies": [unknown]}, [Ignored("X", "y", TODAY, TODAY)], TODAY))
    assert [verdict for verdict, _, _ in told] == ["warn", "warn", "ok"]
    assert "X is ignored, but nothing has it" in told[0][2]
    assert "1 packages are not known there: private" in told[1][2]
    assert told[2][2].startswith("0 packages")


def asked(*answers: dict[str, Any] | None) -> Any:
    left = list(answers)
    return lambda packages, limit_s: left.pop(0)


@pytest.mark.parametrize(
    "answers",
    [
        (None,),  # no network
        ({"dependencies": [{"name": "jinja2", "skip_reason": "not found"}]},),  # an index alone
        ({"dependencies": [{"name": "jinja2", "version": "2.11.2", "vulns": []}]},),
        (KNOWN, None),  # the network went away
    ],
)
def test_silence_is_no_all_clear(answers: tuple[dict[str, Any] | None, ...]) -> None:
    [(verdict, _, text)] = audit(["toy==1.0"], [], asked(*answers), TODAY)
    assert verdict == "warn"
    assert text.startswith("skipped: ")
    assert "network" in text


def test_all_packages_are_asked_for_after_the_canary() -> None:
    questions: list[Sequence[str]] = []

    def ask(packages: Sequence[str], limit_s: float) -> dict[str, Any]:
        questions.append(packages)
        return KNOWN if packages == [CANARY] else {"dependencies": [BAD]}

    assert [v for v, _, _ in audit(["toy==1.0"], [], ask, TODAY)] == ["fix"]
    assert questions == [[CANARY], ["toy==1.0"]]


def script(folder: Path, text: str) -> list[str]:
    path = folder / "pip_audit.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def test_a_network_that_hangs_is_left(tmp_path: Path) -> None:
    late = "import time; time.sleep(20); print('{\"dependencies\": []}')"
    assert doctor_audit.ask([CANARY], 0.5, script(tmp_path, late)) is None
    soon = late.replace("20", "0")
    assert doctor_audit.ask([CANARY], 60, script(tmp_path, soon)) == {"dependencies": []}


def test_a_failure_is_no_report(tmp_path: Path) -> None:
    for text in ("raise OSError('no network')", "print('[]')", "print('<html>')"):
        assert doctor_audit.ask([CANARY], 60, script(tmp_path, text)) is None


def test_pins_are_handed_on_and_nothing_is_installed(tmp_path: Path) -> None:
    text = (
        "import json, sys; words = sys.argv; pins = open(words[words.index('--requirement') + 1])\n"
        "print(json.dumps({'dependencies': [], 'pins': pins.read().split(), 'words': words}))\n"
        "sys.exit(1)"  # as with a hole
    )
    report = doctor_audit.ask(["a==1", "b==2"], 60, script(tmp_path, text))
    assert report is not None
    assert report["pins"] == ["a==1", "b==2"]
    assert {"--no-deps", "--disable-pip", "--timeout"} <= set(report["words"])


@pytest.mark.parametrize(
    ("report", "code"), [(None, 0), (KNOWN, 1), ({"dependencies": [SOUND]}, 0)]
)
def test_only_a_hole_stops_make(
    report: dict[str, Any] | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor_audit, "ask", lambda packages, limit_s: report)
    (tmp_path / "pins.txt").write_text("toy==1.0\n")
    assert command_line.main(["doctor", "--audit", "--pins", str(tmp_path / "pins.txt")]) == code
    assert "audit" in capsys.readouterr().out


def test_without_pip_audit_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_audit.importlib.util, "find_spec", lambda name: None)
    [(verdict, _, text)] = doctor_audit.check(Path("nowhere.txt"))
    assert (verdict, "not installed" in text) == ("warn", True)


def test_the_list_of_ignored_ones_wants_reasons_and_dates(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    assert read_ignored(path) == []
    entry = '{ id = "X", since = 2026-11-22, until = 2027-01-31, reason = "not called" }'
    path.write_text(f"[tool.varlit]\nignored_vulnerabilities = [{entry}]\n")
    assert read_ignored(path) == [Ignored("X", "not called", TODAY, date(2027, 1, 31))]
    for part in ('reason = "not called"', "until = 2027-01-31", "since = 2026-11-22", 'id = "X"'):
        rest = ", ".join(p for p in entry.strip("{ }").split(", ") if p != part)
        path.write_text(f"[tool.varlit]\nignored_vulnerabilities = [{{ {rest} }}]\n")
        with pytest.raises(UserError, match="expected id, reason and the dates"):
            read_ignored(path)


def test_pins_are_exact(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("# a remark\na==1  # why\n\nb==2\n")
    assert read_pins(tmp_path / "pins.txt") == ["a==1", "b==2"]
    (tmp_path / "pins.txt").write_text("a>=1\n")
    with pytest.raises(UserError, match="got `a>=1`, expected name==version"):
        read_pins(tmp_path / "pins.txt")


def test_what_is_installed_can_be_asked_for() -> None:
    pins = doctor_audit.installed()
    assert any(pin.startswith("torch==") for pin in pins)
    assert not any("+" in pin.partition("==")[2] or pin.startswith("varlit==") for pin in pins)
