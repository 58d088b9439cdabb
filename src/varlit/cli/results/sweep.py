"""`varlit var sweep RUN`: figures over guidance, top-k and top-p: a table and two curves.

The model, the feature network and the references are opened once. Each point is an evaluation of
its own, so a sweep that was cut off goes on, and a point that was measured before costs nothing.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varlit.cli.arguments import VerbParser
from varlit.cli.results.evaluate import add_arguments, checked_out, config_of, open_bench
from varlit.cli.results.report import told_choice
from varlit.cli.sampling.rejection import told

if TYPE_CHECKING:
    import numpy as np

    from varlit.metrics.measures import Measures
    from varlit.training.evaluation import Evaluation

SWEEP = "sweep.json"
Point = dict[str, Any]
# What the two curves show: file, x and y by the names of `Measures`.
CURVES = (
    ("frechet-score", "score_mean", "frechet"),
    ("precision-recall", "recall", "precision"),
)
COLUMNS = ("frechet", "spatial_frechet", "score_mean", "kernel_mean", "precision", "recall")


def build_parser() -> VerbParser:
    """The flags of `varlit var sweep`."""
    parser = VerbParser("var sweep", "FID and more of a VAR over settings of the sampler.")
    add_arguments(parser)
    add = parser.add_argument
    add("--cfg_scale", type=_listed(float), default="1.5", help="strengths of guidance: 1,1.5,2")
    add("--top_k", type=_listed(int), default="900", help="draw among the k likeliest: 600,900")
    add("--top_p", type=_listed(float), default="0.96", help="draw within a probability: 0,0.96")
    add("--out", type=Path, default=None, help="all figures as JSON; default RUN/sweep.json")
    return parser


def main(argv: list[str]) -> int:
    """Measure every point, print the table, draw the curves.

    Args:
        argv: What follows `varlit var sweep`.
    """
    args = build_parser().parse_args(argv)
    from varlit.checkpoints.store import find_model
    from varlit.data.whole_files import write_json

    points = list(_points(args))
    configs = [config_of(args, **point) for point in points]
    folder = find_model(args.run, args.root)
    out = checked_out(args.out or folder / SWEEP)
    bench = open_bench(args, configs[0], folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    found: list[Evaluation] = []
    for number, (point, config) in enumerate(zip(points, configs, strict=True), 1):
        print(f"varlit: point {number} of {len(points)}: {_told(point)}", flush=True)
        found.append(bench.evaluate(config, out.parent))
        done = zip(points, found, strict=False)
        write_json(out, {"run": args.run, "points": [_entry(p, e) for p, e in done]})
    _print_table(args.run, points, found)
    print(f"written: {out}")
    for path in _draw_curves(points, found, out):
        print(f"written: {path}")
    return 0


def _listed(kind: type) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        try:
            return list(dict.fromkeys(kind(word) for word in text.split(",")))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"expected numbers with commas between; got {text!r}"
            ) from error

    return parse


def _points(args: argparse.Namespace) -> Iterator[Point]:
    for top_p, top_k, cfg_scale in product(args.top_p, args.top_k, sorted(args.cfg_scale)):
        yield {"cfg_scale": cfg_scale, "top_k": top_k, "top_p": top_p}


def _told(point: Point) -> str:
    return f"guidance {point['cfg_scale']:g}, top-k {point['top_k']}, top-p {point['top_p']:g}"


def _entry(point: Point, found: "Evaluation") -> dict[str, Any]:
    return {**point, **found.to_dict(), "protocol": found.protocol}


def _print_table(run: str, points: Sequence[Point], found: Sequence["Evaluation"]) -> None:
    """One line a point; the best of each column is not marked: there is a price to each."""
    leading = [one.measures[0] for one in found]
    columns = [name for name in COLUMNS if getattr(leading[0], name) is not None]
    network, quick = leading[0].network, "a quick look, " if leading[0].is_quick else ""
    choice = told_choice(found[0].protocol["sampling"].get("keep", 1.0))
    titles = [_short(leading[0], name) for name in columns]
    widths = [max(9, len(title)) for title in titles]
    heads = "".join(f"  {t:>{w}}" for t, w in zip(titles, widths, strict=True))
    reference = leading[0].protocol["reference"]
    count = leading[0].num_images
    print(f"{run}{choice}: {quick}{count:,} images a point, seen by {network}, against {reference}")
    print(f"  {'guidance':>8}  {'top-k':>5}  {'top-p':>5}{heads}")
    for point, measures in zip(points, leading, strict=True):
        cells = "".join(
            f"  {getattr(measures, c):>{w}.5g}" for c, w in zip(columns, widths, strict=True)
        )
        print(f"  {point['cfg_scale']:>8g}  {point['top_k']:>5}  {point['top_p']:>5g}{cells}")
    for point, one in zip(points, found, strict=True):
        if "rejection_cost" in one.protocol:
            first, *rest = told(one.protocol["rejection_cost"]).splitlines()
            print(f"  {_told(point)}: {first}")
            print("".join(f"    {line}\n" for line in rest), end="")
    for remark in found[0].remarks:
        print(f"  beware: {remark}")


def _short(measures: "Measures", name: str) -> str:
    """A title without what is said once for all, that it is quick and by which network."""
    whole = measures.title(name)
    return whole.removeprefix("quick ").removesuffix(f" ({measures.network})")


def _draw_curves(points: Sequence[Point], found: Sequence["Evaluation"], out: Path) -> list[Path]:
    """A line for each pair of top-k and top-p, along guidance; where both axes were measured."""
    from varlit.viz import save_png

    leading = [one.measures[0] for one in found]
    written = []
    for name, x, y in CURVES:
        if any(getattr(measures, axis) is None for measures in leading for axis in (x, y)):
            continue
        path = out.with_name(f"{out.stem}-{name}.png")
        save_png(_curve(points, found, x, y), path)
        written.append(path)
    return written


def _curve(points: Sequence[Point], found: Sequence["Evaluation"], x: str, y: str) -> "np.ndarray":
    """One picture, which says by itself what was compared with what."""
    from varlit.viz.plots import lines

    leading = [one.measures[0] for one in found]
    first, protocol = leading[0], found[0].protocol
    series: dict[str, tuple[list[float], list[float]]] = {}
    marks: dict[str, list[str]] = {}
    for point, measures in zip(points, leading, strict=True):
        key = f"k {point['top_k']}, p {point['top_p']:g}"
        xs, ys = series.setdefault(key, ([], []))
        xs.append(getattr(measures, x))
        ys.append(getattr(measures, y))
        marks.setdefault(key, []).append(f"{point['cfg_scale']:g}")
    choice = told_choice(protocol["sampling"].get("keep", 1.0)).removeprefix("-re ")
    seen = f", seen by {first.network}"
    parts = (
        "Numbers at the points: guidance",
        f"{first.num_images:,} images a point{seen}",
        f"against {first.protocol['reference']}",
        choice.strip("()"),
    )
    return lines(
        series,
        title=f"{'Quick look: ' * first.is_quick}{_short(first, y)} over {_short(first, x)}",
        caption="; ".join(filter(None, parts)) + ".",
        x_label=_short(first, x),
        marks=marks,
    )
