"""What a stage's verb tells at its end: the table of measures, metrics.json, the dry run's plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varlit.cli.config.recipes import displayed
from varlit.cli.running.devices import Placement
from varlit.cli.sampling.rejection import told


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
    from varlit.cli.pricing.info import cost_card

    place = plan.placement
    print(f"varlit {plan.stage} {plan.subcommand}: a dry run, nothing was touched")
    print("  settings     " + " -> ".join(displayed(f) for f in plan.files) + " -> flags")
    print(f"  would write  {plan.run_dir}/  (settings in {plan.subcommand}.yaml)")
    print(f"  would start  {f'from {checkpoint}' if checkpoint else 'afresh'}")
    remark = f"  ({place.remark})" if place.remark else ""
    print(f"  runs on      {place.accelerator} x {place.devices}, {place.precision}{remark}")
    print(cost_card(plan.stage, dict(settings)))
    print("All settings: the same command with --print_config instead of --dry_run")


def print_table(
    title: str,
    measures: Mapping[str, float],
    published: Mapping[str, Mapping[str, float]] | None = None,
    titles: Mapping[str, str] | None = None,
) -> None:
    """Print measures as a table, one a line.

    Args:
        title: The line above it.
        measures: By the names that they have in metrics.json.
        published: What others have published, by source and the same names.
        titles: What people call some of the measures; these come first, in this order.
    """
    print(title)
    published, titles = published or {}, titles or {}
    names = [*(n for n in titles if n in measures), *sorted(n for n in measures if n not in titles)]
    width = max((len(titles.get(name, name)) for name in names), default=0)
    columns = [(max(8, len(source)), figures) for source, figures in published.items()]
    if published:
        heads = "".join(f"  {source:>8}" for source in published)
        print(f"  {'':<{width}}  {'ours':>10}{heads}")
    for name in names:
        beside = "".join(f"  {_cell(figures.get(name)):>{room}}" for room, figures in columns)
        print(f"  {titles.get(name, name):<{width}}  {measures[name]:10.5g}{beside}")


def print_protocol(protocol: Mapping[str, Any]) -> None:
    """Print how an evaluation was done, and why it should not be trusted, if so."""
    if "sampling" not in protocol:
        return
    from varlit.training.comparability import why_not_comparable

    drawn, weights = protocol["sampling"], protocol["weights"]
    blended = ", blended" if drawn["more_smooth"] else ""
    lines = {
        "images": f"{drawn['num_images']:,} of {drawn['num_classes']:,} classes, seed "
        f"{drawn['seed']}, {protocol['rounding']}",
        "sampling": f"guidance {drawn['cfg_scale']:g} ({drawn['guidance']}), top-k "
        f"{drawn['top_k']}, top-p {drawn['top_p']:g}{blended}, {protocol['sampling_precision']} on "
        f"{protocol['device']}, {protocol.get('drawn', 'eager')}",
        "weights": ", ".join(f"{name} {value[:8]}" for name, value in weights.items()),
        "features": f"{protocol['features']} {protocol['weights_sha256'][:8]}, resized: "
        f"{protocol['resize']}",
    }
    for name, text in lines.items():
        print(f"  {name:<9}  {text}")
    _print_choice(drawn, protocol)
    for reference in protocol["references"]:
        count = reference["reference_images"]
        told = f"{count:,} images" if count else "images not counted"
        sha = reference["reference_sha256"][:8]
        print(f"  reference  {reference['reference']}, {told}, sha256 {sha}")
    for name, text in _measuring(protocol).items():
        print(f"  {name:<9}  {text}")
    if protocol["is_quick"]:
        print("  a quick look: fewer images than published figures are of; compare with nothing")
    elif why := why_not_comparable(protocol):
        print(f"  no published figure compares: {why}")
    for remark in protocol["remarks"]:
        print(f"  beware: {remark}")


def _measuring(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Splits, subsets and rows of the measures, as far as they were taken, and versions."""
    told = {}
    if "score_splits" in protocol:
        told["splits"] = (
            f"IS over {protocol['score_splits']} shuffled splits, seed {protocol['score_seed']}"
        )
    if "sample_rows" in protocol:
        told["rows"] = (
            f"KID over {protocol['kid_subsets']} subsets of {protocol['kid_subset_size']:,}, seed "
            f"{protocol['kid_seed']}, of {protocol['sample_rows']:,} rows; precision and recall "
            f"with k = {protocol['neighbours']} of {protocol['precision_images']:,} drawn and "
            f"{protocol['recall_images']:,} real"
        )
    if versions := protocol.get("versions"):
        told["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return told


def told_choice(keep: float) -> str:
    """What follows a name in a title where images were chosen; the paper calls these rows -re."""
    return f"-re (rejection sampling, keep {keep:g})" if keep < 1.0 else ""


def told_quick(protocol: Mapping[str, Any]) -> str:
    """What follows a name in a title where few images were drawn."""
    if not protocol.get("is_quick"):
        return ""
    return f": a quick look, {protocol['num_images']:,} images"


def _print_choice(drawn: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
    """By what images were chosen, and what it took."""
    if "classifier" not in drawn:
        return
    sha = drawn["classifier_weights_sha256"][:8]
    print(
        f"  rejection  keep {drawn['keep']:g} by {drawn['classifier']} {sha}, in groups of "
        f"{drawn['keep_group_size']}; its outputs: {drawn['classifier_classes']}"
    )
    for line in told(protocol["rejection_cost"]).splitlines():
        print(f"  {'':<9}  {line}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def write_metrics(
    path: Path,
    measures: Mapping[str, float],
    checkpoint: Path | None,
    protocol: Mapping[str, Any],
) -> None:
    """Write measures, the checkpoint they belong to and how they were taken, atomically."""
    from varlit.data.whole_files import write_json

    content: dict[str, Any] = {"checkpoint": str(checkpoint) if checkpoint else None, **measures}
    if protocol:
        content["protocol"] = dict(protocol)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    print(f"written: {path}")
