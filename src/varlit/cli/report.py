"""What a stage's verb tells at its end: the table of measures, metrics.json, the dry run's plan."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varlit.cli.devices import Placement
from varlit.cli.recipes import displayed


@dataclass(frozen=True)
class Plan:
    """What a dry run would have done."""

    stage: str
    subcommand: str
    run_dir: Path
    files: list[Path]
    placement: Placement


def print_plan(plan: Plan, settings: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Print where the settings come from, where the run would write, and what it would cost."""
    from varlit.cli.info import cost_card

    place = plan.placement
    print(f"varlit {plan.stage} {plan.subcommand}: a dry run, nothing was touched")
    print("  settings     " + " -> ".join(displayed(f) for f in plan.files) + " -> flags")
    print(f"  would write  {plan.run_dir}/  (settings in {plan.subcommand}.yaml)")
    print(f"  would start  {f'from {checkpoint}' if checkpoint else 'afresh'}")
    remark = f"  ({place.remark})" if place.remark else ""
    print(f"  runs on      {place.accelerator} x {place.devices}, {place.precision}{remark}")
    print(cost_card(plan.stage, dict(settings)))
    print("All settings: the same command with --print_config instead of --dry_run")


def print_table(title: str, measures: Mapping[str, float]) -> None:
    """Print measures as a table, one a line."""
    print(title)
    width = max((len(name) for name in measures), default=0)
    for name, value in sorted(measures.items()):
        print(f"  {name:<{width}}  {value:10.5g}")


def write_metrics(
    path: Path,
    measures: Mapping[str, float],
    checkpoint: Path | None,
    protocol: Mapping[str, Any],
) -> None:
    """Write measures, the checkpoint they belong to and how they were taken, atomically."""
    content: dict[str, Any] = {"checkpoint": str(checkpoint) if checkpoint else None, **measures}
    if protocol:
        content["protocol"] = dict(protocol)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
    print(f"written: {path}")
