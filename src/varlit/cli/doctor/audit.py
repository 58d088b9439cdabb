"""`varlit doctor --audit`: known vulnerabilities of the packages, by pip-audit.

Without a network this says so and stops nothing. An index that knows no vulnerabilities answers
pip-audit too, which then finds none: so it is first asked for one that everybody knows.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from varlit.cli.doctor.findings import Finding, Verdict
from varlit.errors import UserError

CANARY = "Jinja2==2.11.2"
"""CVE-2020-28493, among others."""
COMMAND = (sys.executable, "-m", "pip_audit")
SOCKET_S, CANARY_S, AUDIT_S = 5, 30, 300
SHOWN = 3

Report = Mapping[str, Any]
Ask = Callable[[Sequence[str], float], Report | None]


@dataclass(frozen=True)
class Ignored:
    """A vulnerability that is passed over for a time, `tool.varlit` in pyproject.toml."""

    id: str
    reason: str
    since: date
    until: date


def check(pins: Path) -> Iterator[Finding]:
    """Ask for the vulnerabilities of pinned packages; where there are no pins, of installed ones.

    Args:
        pins: Lines of name==version; the ignored vulnerabilities lie in pyproject.toml beside it.

    Raises:
        UserError: If the list of ignored ones is malformed.
    """
    if importlib.util.find_spec("pip_audit") is None:
        yield "warn", "audit", "skipped: pip-audit is not installed; pip install pip-audit"
        return
    packages = read_pins(pins) if pins.is_file() else installed()
    ignored = read_ignored(pins.parent / "pyproject.toml")
    yield from audit(packages, ignored, ask, datetime.now(UTC).date())


def audit(
    packages: Sequence[str], ignored: Sequence[Ignored], ask: Ask, today: date
) -> Iterator[Finding]:
    """Ask for the canary, then for all packages."""
    known = ask([CANARY], CANARY_S)
    if known is None:
        yield "warn", "audit", "skipped: no network (or no answer in time)"
        return
    if not any(each.get("vulns") for each in known.get("dependencies", ())):
        yield (
            "warn",
            "audit",
            f"skipped: no network to a list of vulnerabilities: what answers knows none of "
            f"{CANARY}, so its silence on others means nothing",
        )
        return
    report = ask(packages, AUDIT_S)
    if report is None:
        yield "warn", "audit", f"skipped: the network went away; {len(packages)} packages unseen"
        return
    yield from judge(report, ignored, today)


def judge(report: Report, ignored: Sequence[Ignored], today: date) -> Iterator[Finding]:
    """Turn pip-audit's report into findings.

    Args:
        report: `dependencies`, each with `name`, `version` and `vulns`, or a `skip_reason`.
        ignored: What to pass over.
        today: After `until` it is passed over no more.
    """
    names = {each.id: each for each in ignored}
    seen: set[str] = set()
    num_bad = 0
    verdict: Verdict
    for package in report["dependencies"]:
        for hole in package.get("vulns", ()):
            found = next((i for i in (hole["id"], *hole.get("aliases", ())) if i in names), "")
            seen.add(found)
            verdict, why = _passed_over(names[found], today) if found else ("fix", "")
            num_bad += verdict == "fix"
            mended = ", ".join(hole.get("fix_versions", ())) or "no version yet"
            text = f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}"
            yield verdict, "audit", text + why
    for name in sorted(set(names) - seen):
        yield "warn", "audit", f"{name} is ignored, but nothing has it: remove it from the list"
    unknown = [each["name"] for each in report["dependencies"] if "skip_reason" in each]
    if unknown:
        told = ", ".join(unknown[:SHOWN]) + ", ..." * (len(unknown) > SHOWN)
        yield "warn", "audit", f"{len(unknown)} packages are not known there: {told}"
    if not num_bad:
        num_seen = len(report["dependencies"]) - len(unknown)
        yield "ok", "audit", f"{num_seen} packages without a known vulnerability that counts"


def _passed_over(ignored: Ignored, today: date) -> tuple[Verdict, str]:
    if today > ignored.until:
        return "fix", f"; was ignored until {ignored.until} ({ignored.reason}): look again"
    return "warn", f"; ignored until {ignored.until}: {ignored.reason}"


def read_ignored(path: Path) -> list[Ignored]:
    """Read `tool.varlit.ignored_vulnerabilities`; none where there is no such file.

    Raises:
        UserError: If one lacks its reason or its dates.
    """
    if not path.is_file():
        return []
    tool = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    ignored = []
    for entry in tool.get("varlit", {}).get("ignored_vulnerabilities", []):
        dates = [entry.get("since"), entry.get("until")]
        texts = [entry.get("id"), entry.get("reason")]
        if not all(isinstance(d, date) for d in dates) or not all(texts):
            raise UserError(
                f"{path}: got the ignored vulnerability {entry}, expected id, reason and the dates "
                "since and until"
            )
        ignored.append(Ignored(*texts, *dates))
    return ignored


def read_pins(path: Path) -> list[str]:
    """Read the lines of name==version.

    Raises:
        UserError: If a line is none.
    """
    lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    for line in filter(None, lines):
        if len(line.split("==")) != 2:
            raise UserError(f"{path}: got `{line}`, expected name==version; pin it")
    return [line for line in lines if line]


def installed() -> list[str]:
    """Pin what is installed, varlit aside; local versions such as +cu132 are nobody's releases."""
    found = {d.metadata["Name"]: d.version.partition("+")[0] for d in metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name != "varlit"]


def ask(packages: Sequence[str], limit_s: float, command: Sequence[str] = COMMAND) -> Report | None:
    """Run pip-audit on pins, installing and resolving nothing.

    Args:
        packages: Lines of name==version.
        limit_s: Seconds after which it is ended.
        command: pip-audit.

    Returns:
        Its report; None where it failed or took too long.
    """
    flags = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    with tempfile.TemporaryDirectory(prefix="varlit-audit-") as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(packages) + "\n")
        words = [*command, "--requirement", str(file), "--timeout", str(SOCKET_S), *flags]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit_s)
            report = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            return None
    return report if isinstance(report, dict) and "dependencies" in report else None
