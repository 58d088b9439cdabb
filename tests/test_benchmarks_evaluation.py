"""The benchmark of evaluation runs, and both roots are the same; how fast, no test asks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import evaluation
from evaluation_networks import random_reference, tiny_network
from harness.options import exit_code

from varlit.metrics.frechet import statistics_distance

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
QUICK = ["--size", "tiny", "--rounds", "1", "--lap_s", "0"]
NAMES = [
    *(evaluation.DRAWING, evaluation.DECODING, evaluation.INCEPTION, evaluation.MOBILENET),
    *(evaluation.GATHERING, evaluation.WHOLE, evaluation.SCIPY, evaluation.OURS),
    *(evaluation.KERNEL, evaluation.NEIGHBOURS),
]


@pytest.fixture(autouse=True)
def _settings_of_the_process_are_put_back():
    yield
    torch.set_flush_denormal(False)


def rows_of(markdown):
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.slow
def test_the_parts_print_their_rows_and_file_them(tmp_path):
    assert evaluation.main([*QUICK, "--out", str(tmp_path)]) == 0
    header, _, *rows = rows_of((tmp_path / "evaluation-cpu.md").read_text())
    assert header[-2:] == ["s for 50,000", "relative difference"]
    assert [row[0] for row in rows] == NAMES
    by_name = {row[0]: row for row in rows}
    assert by_name[evaluation.OURS][3] == "-"
    assert float(by_name[evaluation.OURS][-1]) < 1e-9
    assert float(by_name[evaluation.WHOLE][-2].replace(",", "")) > 0


def test_the_distance_by_scipy_is_ours():
    parts = evaluation.Parts("tiny", 2, 40, CPU, False)
    a, b = parts.statistics()
    assert statistics_distance(a, b) == pytest.approx(evaluation.scipy_distance(a, b), rel=1e-9)
    assert statistics_distance(a, b) > 0.1


def test_a_whole_evaluation_is_one_row(capsys, tmp_path):
    words = [*QUICK, "--full", "--images", "20", "--out", str(tmp_path)]
    assert evaluation.main(words) == 0
    header, _, row = rows_of((tmp_path / "evaluation-cpu.md").read_text())
    assert header[-2:] == ["drawing and looking", "measuring"]
    assert row[0].startswith("20 images")
    assert "20 generated images" not in capsys.readouterr().err


def test_a_reference_has_features_of_all_kinds():
    reference = random_reference(tiny_network(), 30, 20)
    assert reference.rows.shape == (30, 12)
    assert reference.spatial is not None
    assert reference.image_px == 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cuda"])
    assert exit_code(evaluation.main) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
