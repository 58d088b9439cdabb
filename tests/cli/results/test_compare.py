"""`varlit compare`: measured figures beside published ones, and the page that is made of them."""

import json
from pathlib import Path

import pytest

from varlit.cli import main as command_line
from varlit.cli.results.measured import read_result
from varlit.cli.results.page import page
from varlit.errors import UserError

PAGE = Path(__file__).parents[3] / "docs" / "results.md"
FULL = {"fid": 3.51, "inception_score_mean": 280.2, "precision": 0.84, "recall": 0.5}
SAMPLING = {"cfg_scale": 1.5, "guidance": "var", "top_k": 900, "top_p": 0.96}
PROTOCOL = {
    **{"features": "inception", "feature_dim": 2048, "weights_sha256": "6726825d" + "0" * 56},
    **{"num_images": 50_000, "is_quick": False, "drawing_s": 500.0, "remarks": []},
    **{"image_px": 256, "rounding": "uint8, nearest", "sampling": SAMPLING},
    **{"reference": "VIRTUAL_imagenet256_labeled.npz", "reference_images": None},
    "reference_sha256": "ab" * 32,
}
D16 = {
    "var": {"depth": 16, "width": 0},
    "num_classes": 1000,
    "tokenizer": {
        "channel_multipliers": [1, 1, 2, 2, 4],
        "scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    },
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def write(runs: Path, name: str, figures: dict, protocol: dict | None = None, depth: int = 16):
    folder = runs / name
    folder.mkdir(parents=True)
    config = D16 | {"var": {"depth": depth, "width": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    content = {"checkpoint": "somewhere", **figures}
    if protocol is not None:
        content["protocol"] = protocol
    (folder / "metrics.json").write_text(json.dumps(content))


def compare(runs: Path, *names: object) -> int:
    return command_line.main(["compare", *map(str, names), "--root", str(runs)])


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_committed_page_is_what_the_command_writes(runs: Path, tmp_path: Path):
    assert compare(runs, "--out", tmp_path / "results.md") == 0
    written = (tmp_path / "results.md").read_text()
    assert written == PAGE.read_text(), "run: varlit compare --out docs/results.md"


def test_what_we_did_not_measure_says_not_run():
    row = cells(page([]), "VAR-d16 | ours")
    assert row == ["VAR-d16", "ours", *["not run"] * 4, "310M", "10", "not run"]
    assert cells(page([]), "VAR-d16 | 3.30")[1:] == ["3.30", "3.55", "3.49", "not run"]


def test_a_full_evaluation_stands_beside_the_published_ones(runs: Path, capsys):
    write(runs, "mine", FULL, PROTOCOL)
    assert compare(runs, "mine") == 0
    out = capsys.readouterr().out
    assert "VAR-d16 (mine)  ours             3.51  280.2  0.84       0.50    310M" in out
    assert "VAR-d16         paper            3.30" in out
    assert "VAR-d20" not in out
    text = page([read_result("mine", runs)])
    assert cells(text, "VAR-d16 | 3.30")[4] == "3.51"
    assert "VAR-d16 | ours" not in text


def test_how_each_of_our_rows_was_measured_stands_below_it(runs: Path, capsys):
    write(runs, "mine", FULL, PROTOCOL)
    write(runs, "down", FULL, PROTOCOL | {"rounding": "uint8, down"})
    how = (
        "VAR-d16 (mine): guidance 1.5, kind var, top-k 900, top-p 0.96, rounding uint8, nearest; "
        "reference VIRTUAL_imagenet256_labeled.npz (sha256 abababab)"
    )
    assert compare(runs, "mine", "down") == 0
    assert how in capsys.readouterr().out
    text = page([read_result("mine", runs), read_result("down", runs)])
    assert f"- {how}\n" in text
    assert "VAR-d16 (down)" not in text


def test_times_are_relative_to_our_own_d30_on_the_same_machine(runs: Path):
    other = PROTOCOL | {"versions": {"gpu": "another"}, "drawing_s": 1.0}
    write(runs, "small", FULL, PROTOCOL)
    write(runs, "elsewhere", FULL, other)
    write(runs, "large", FULL, PROTOCOL | {"drawing_s": 1250.0}, depth=30)
    text = page([read_result(name, runs) for name in ("small", "elsewhere", "large")])
    assert cells(text, "VAR-d16 (small)")[-1] == "0.4"
    assert cells(text, "VAR-d16 (elsewhere)")[-1] == "not run"
    assert cells(text, "VAR-d30 (large)")[-1] == "1"


def test_chosen_images_are_a_row_of_their_own(runs: Path):
    write(runs, "best", FULL, PROTOCOL | {"sampling": SAMPLING | {"keep": 0.25}}, depth=30)
    text = page([read_result("best", runs)])
    assert cells(text, "VAR-d30-re (best)")[2] == "3.51"
    assert cells(text, "VAR-d30 | ours")[2] == "not run"


def test_a_raster_baseline_of_a_published_shape_is_no_published_model(runs: Path):
    write(runs, "raster", FULL, PROTOCOL)
    config = D16 | {"var": D16["var"] | {"order": "raster"}}
    (runs / "raster" / "config.json").write_text(json.dumps(config))
    assert read_result("raster", runs).model == ""


def test_chosen_images_of_a_model_without_such_a_row_are_no_figure_of_the_model(runs: Path):
    write(runs, "best", FULL, PROTOCOL | {"sampling": SAMPLING | {"keep": 0.25}})
    text = page([read_result("best", runs)])
    assert cells(text, "VAR-d16 | ours")[2] == "not run"
    assert cells(text, "best")[1] == "no published d16-re; rejection sampling, keep 0.25"


@pytest.mark.parametrize(
    ("figures", "protocol", "why"),
    [
        ({"quick_fid": 9.0}, PROTOCOL | {"num_images": 5000, "is_quick": True}, "quick: 5,000"),
        ({"fid": 9.0}, PROTOCOL | {"num_images": 5000}, "quick: 5,000 images"),
        (
            {"frechet_mobilenet_v2": 9.0},
            PROTOCOL | {"features": "mobilenet_v2"},
            "by mobilenet_v2, not Inception",
        ),
        ({"fid": 9.0}, PROTOCOL | {"num_images": None}, "number of images not told"),
        (
            FULL,
            PROTOCOL | {"weights_sha256": "0" * 64},
            "other weights of Inception (sha256 00000000",
        ),
        (
            FULL,
            PROTOCOL | {"reference": "photos val"},
            "reference photos val, not VIRTUAL_imagenet",
        ),
        (FULL, PROTOCOL | {"image_px": 512}, "not VIRTUAL_imagenet512.npz"),
        (FULL, PROTOCOL | {"image_px": 64}, "ADM has none of this size"),
        (FULL, PROTOCOL | {"reference_images": 320}, "reference of 320 images for 2,048 features"),
        (FULL, PROTOCOL | {"rounding": "uint8, down"}, "rounding uint8, down, not uint8, nearest"),
        (FULL, PROTOCOL | {"remarks": ["far too large"]}, "beware: far too large"),
        ({"fid": 9.0}, None, "unknown features"),
        ({"precision": 0.9}, PROTOCOL, "no FID"),
    ],
)
def test_what_does_not_compare_is_in_no_fid_column(runs: Path, capsys, figures, protocol, why):
    write(runs, "odd", figures, protocol)
    assert compare(runs, "odd") == 0
    assert why in capsys.readouterr().out
    text = page([read_result("odd", runs)])
    assert cells(text, "VAR-d16 | 3.30")[4] == "not run"
    assert why in cells(text, "odd")[1]
    assert f"`{next(iter(figures))}`" in cells(text, "odd")[2]


def test_another_model_is_shown_under_its_own_name(runs: Path):
    write(runs, "d7", FULL, PROTOCOL, depth=7)
    text = page([read_result("d7", runs)])
    assert cells(text, "d7")[1] == "no published model of this shape"


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read as JSON"), ("[1]", "holds a list"), (None, "varlit evaluate bad")],
)
def test_damaged_or_missing_figures_are_named(runs: Path, content, said):
    (runs / "bad").mkdir(parents=True)
    if content is not None:
        (runs / "bad" / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_result("bad", runs)


def test_only_a_page_of_markdown_is_written(runs: Path, capsys):
    assert compare(runs, "--out", runs / "page.txt") == 2
    assert "--out wants the name of a .md file" in capsys.readouterr().err
