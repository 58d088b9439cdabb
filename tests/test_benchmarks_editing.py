"""The check behind the table of docs/editing.md: it runs, and counts what it says it counts."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "checks"))

import editing_digits
from editing_digits import CASES, Row

from varlit.checkpoints.pretrained import load
from varlit.data.digits import load_digits
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    codebook_size=16,
    codebook_dim=4,
    scales=(1, 2, 4),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    save_tokenizer(VQVAE(TOKENIZER), root / "tok")
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 10)
    save_var(var, root / "tok", root / "var")
    return root / "var"


def test_the_error_is_that_of_the_upper_rows_in_grey_levels() -> None:
    digits = load_digits()
    found = digits.test_images[:4].clone()
    found[:, :, editing_digits.KEPT_ROWS :] = 0
    assert editing_digits.error_of(found, digits) == 0
    found[:, :, : editing_digits.KEPT_ROWS] += 2 / 255
    assert editing_digits.error_of(found, digits) == pytest.approx(1, abs=1e-4)


def test_what_is_not_asked_for_has_no_figure() -> None:
    lines = editing_digits.lines_of([Row("no class", None, 0.554, 14.26), Row("all", 1, 0, None)])
    assert lines[2:] == ["| no class | | 55% | 14.3 |", "| all | 100% | 0% | |"]
    assert len({line.count("|") for line in lines}) == 1


def test_every_row_of_the_docs_is_a_case() -> None:
    text = (Path(__file__).parents[1] / "docs" / "editing.md").read_text()
    table = text.partition("| lower half |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table] == [case.name for case in CASES]


def test_a_kept_half_is_nearer_than_a_whole_that_is_new(run: Path) -> None:
    var, digits = load(run), load_digits()
    images, asked = digits.test_images[:3], digits.test_labels[:3]
    halves, wholes = (
        editing_digits.edited(var, var.tokenizer, images, asked, case, 0)
        for case in (CASES[2], CASES[6])
    )
    redrawn = var.tokenizer.reconstruct(images)
    gap = [(x - redrawn)[:, :, :8].abs().mean() for x in (halves, wholes)]
    assert gap[0] < gap[1]


@pytest.mark.slow  # the judge is trained
def test_the_check_runs_to_the_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert editing_digits.main(["--quick", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert all(f"| {case.name} |" in said for case in CASES)
    assert "10 test digits, seeds 0; tokenizer alone: " in said
