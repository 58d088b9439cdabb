"""The results page and table: published figures beside ours, each under the name of its source."""

from collections.abc import Sequence

from varlit.cli.results.measured import Result
from varlit.metrics.published import (
    OURS,
    PAPER,
    README,
    RIVALS,
    RIVALS_512,
    THIRD_PARTY,
    VARS,
    Published,
)

NOT_RUN, NOT_GIVEN = "not run", "-"
HEADS = ("model", "who", "FID", "IS", "precision", "recall", "parameters", "steps", "time")
KINDS = (PAPER, README, THIRD_PARTY, OURS)
_TIME_YARDSTICK = "d30"
_INTRO = """\
# Results

<!-- Made by `varlit compare RUN... --out docs/results.md`; edit the code, not this page. -->

Class-conditional ImageNet. *paper*, *official README* and *third party* are quoted, *ours* was
measured by this project's `varlit var test` or `varlit evaluate`. `not run` is what we have not
measured, `-` what a source does not give. A number of ours gets a place here only with 50,000
images, Inception's features by its standard weights, ADM's reference file of the same size and
rounding to the nearest grey level; what else is measured is listed apart, with the reason.
[evaluation.md](evaluation.md) has the protocol.
"""

_SECOND_HAND = """\
The paper's figures were read in copies of its tables in later publications, which agree; before you
quote one, look into the paper. Paper and README differ because the paper has two versions: the
README's 1.80 of d30-re is in the abstract of the first, the second, quoted here, says 1.73.
"""


def page(results: Sequence[Result]) -> str:
    """The whole page, as Markdown."""
    small = [model for model, rows in VARS.items() if rows[0].image_px == 256]
    large = [model for model in VARS if model not in small]
    parts = [_INTRO]
    parts += ["## FID by source\n", _markdown(("model", *KINDS), _by_source(results))]
    parts += ["## 256 px\n", _markdown(HEADS, [*_rivals(RIVALS), *_vars(small, results)])]
    parts += [
        "`-re`: [rejection sampling](evaluation.md#rejection-sampling). Time is per image and\n"
        "relative: to the paper's VAR-d30 in quoted rows, to our own d30 on the same machine in\n"
        "ours. Validation images are real ones, measured as if they were drawn.\n"
    ]
    parts += ["## 512 px\n", _markdown(HEADS, [*_rivals(RIVALS_512), *_vars(large, results)])]
    if notes := _notes(results):
        parts += ["## How ours were measured\n", "".join(f"- {note}\n" for note in notes)]
    if others := _others(results):
        heads = ("run", "why it is not above", "figures")
        parts += ["## Other runs\n", _markdown(heads, others)]
    parts += ["## Sources\n", _sources()]
    return "\n".join(parts)


def table(results: Sequence[Result]) -> str:
    """Runs beside published figures of the same models, for a terminal."""
    models = [model for model in VARS if any(r.model == model and not r.why_not for r in results)]
    text = _aligned([HEADS, *_vars(models, results)]) if models else ""
    text += "".join(f"  {note}\n" for note in _notes(results))
    others = _others(results)
    lines = [f"  {name}  ({why})  {figures}" for name, why, figures in others]
    if lines:
        text += "\n" * bool(text) + "not beside published figures:\n" + "\n".join(lines) + "\n"
    return text or _aligned([HEADS, *_vars(list(VARS), results)])


def _by_source(results: Sequence[Result]) -> list[tuple[str, ...]]:
    rows = []
    for model, published in VARS.items():
        quoted = {row.kind: f"{row.fid:.2f}" for row in published}
        measured = [r for r in results if r.model == model and not r.why_not]
        ours = ", ".join(f"{r.figures['fid']:.2f}" for r in measured)
        cells = [quoted.get(kind, NOT_GIVEN) for kind in KINDS[:-1]]
        rows.append((f"VAR-{model}", *cells, ours or NOT_RUN))
    return rows


def _rivals(rows: Sequence[Published]) -> list[tuple[str, ...]]:
    return [_quoted(row, row.model) for row in rows]


def _vars(models: Sequence[str], results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For each model what was published, then ours."""
    rows = []
    for model in models:
        rows += [_quoted(row, f"VAR-{model}") for row in VARS[model]]
        ours = [r for r in results if r.model == model and not r.why_not]
        first = VARS[model][0]
        rows += [_measured(r, first, results) for r in ours]
        if not ours:
            rows.append(
                (f"VAR-{model}", OURS, *[NOT_RUN] * 4, first.parameters, first.steps, NOT_RUN)
            )
    return rows


def _quoted(row: Published, model: str) -> tuple[str, ...]:
    return (
        model,
        row.kind,
        f"{row.fid:.2f}",
        _number(row.inception_score, 1),
        _number(row.precision, 2),
        _number(row.recall, 2),
        *(text or NOT_GIVEN for text in (row.parameters, row.steps, row.time)),
    )


def _measured(result: Result, same: Published, results: Sequence[Result]) -> tuple[str, ...]:
    found = result.figures
    score = found.get("inception_score_mean", found.get("inception_score"))
    return (
        f"VAR-{result.model} ({result.name})",
        OURS,
        f"{found['fid']:.2f}",
        _number(score, 1, NOT_RUN),
        _number(found.get("precision"), 2, NOT_RUN),
        _number(found.get("recall"), 2, NOT_RUN),
        same.parameters,
        str(result.steps or same.steps),
        _time(result, results),
    )


def _notes(results: Sequence[Result]) -> list[str]:
    """How each of our rows was measured: published rows do not all tell theirs."""
    ours = [r for r in results if r.model in VARS and not r.why_not]
    return [f"VAR-{r.model} ({r.name}): {r.how}" for r in ours]


def _time(result: Result, results: Sequence[Result]) -> str:
    """Relative to our own d30 on the same machine; times of two machines do not compare."""
    for other in results:
        if other.model == _TIME_YARDSTICK and other.machine == result.machine:
            own, unit = result.seconds_per_image, other.seconds_per_image
            return f"{own / unit:.2g}" if own and unit else NOT_RUN
    return NOT_RUN


def _others(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """Runs whose figures compare with nothing above, under the names that they carry."""
    rows = []
    for result in results:
        why = result.why_not or _unpublished(result)
        if why and result.keep < 1.0:
            why += f"; rejection sampling, keep {result.keep:g}"
        if why:
            told = ", ".join(f"{_plain(k)} {v:.4g}" for k, v in sorted(result.figures.items()))
            rows.append((result.name, why, told or NOT_GIVEN))
    return rows


def _unpublished(result: Result) -> str:
    if result.model in VARS:
        return ""
    return f"no published {result.model or 'model of this shape'}"


def _plain(key: str) -> str:
    return f"`{key}`"


def _sources() -> str:
    quoted: dict[str, list[str]] = {}
    for row in (*RIVALS, *RIVALS_512, *(row for rows in VARS.values() for row in rows)):
        quoted.setdefault(f"{row.source} ({row.kind})", []).append(row.model)
    lines = [f"- {source}: {'; '.join(dict.fromkeys(names))}" for source, names in quoted.items()]
    return _SECOND_HAND + "\n" + "\n".join(lines) + "\n"


def _number(value: float | None, digits: int, missing: str = NOT_GIVEN) -> str:
    return missing if value is None else f"{value:.{digits}f}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in line).rstrip() for line in lines) + "\n"
