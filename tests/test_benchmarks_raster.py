"""The check that trains both orders runs from end to end; what it finds, no test asks."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "checks"))

import raster_quality
import raster_tables

pytestmark = pytest.mark.filterwarnings("ignore")


def costs(order: str) -> raster_tables.Costs:
    return raster_tables.Costs(order, 4, 30, 1_244_432, 100.6, 90.0, 189.0, 17.3, 25.0, 0.956)


def test_the_tables_name_every_order_and_guidance() -> None:
    quality = [raster_tables.Quality("VAR", "none", 0.9, 60.0, 0.8, 0.7)]
    report = raster_tables.Report(40, 40, 0, 0.953, 57.8, [costs("VAR"), costs("raster")], quality)
    lines = raster_tables.lines_of(report)
    first, second = (i for i, line in enumerate(lines) if line.startswith("| order"))
    for table in (lines[first : second - 1], lines[second:-2]):
        assert len({line.count("|") for line in table}) == 1, "as many cells in every row"
    assert "| VAR | none | 90.0% | 60.0 | 0.800 | 0.700 |" in lines


def test_both_orders_are_trained_by_recipes_that_are_twins() -> None:
    ours, theirs = (
        raster_quality.commands(recipe, Path("runs"), 0, is_quick=False)
        for recipe in raster_quality.RECIPES.values()
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert [word.replace("digits-raster", "digits") for word in other] == mine


@pytest.mark.slow
@pytest.mark.soak
def test_the_check_trains_draws_judges_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raster_quality.main(["--quick", "--out", str(tmp_path / "check")]) == 0
    report = json.loads((tmp_path / "check" / "report.json").read_text())
    steps = {row["order"]: row["steps"] for row in report["costs"]}
    assert steps == {"VAR": 4, "raster scan": 16}
    parameters = [row["parameters"] for row in report["costs"]]
    assert parameters[1] == pytest.approx(parameters[0], rel=0.01)
    assert len(report["quality"]) == 2 * len(raster_quality.GUIDANCE)
    assert (tmp_path / "check" / "samples.png").exists()
    assert "| raster scan | constant 2.5 |" in capsys.readouterr().out
