"""`varlit demo`: it opens what `varlit sample` opens, says where it listens, and ends on Ctrl-C."""

import base64
import io
import json
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.checkpoints.pretrained import PretrainedVAR, load
from varlit.cli import demo
from varlit.cli import main as command_line
from varlit.cli.sampling import sample
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.page.command import Opened
from varlit.page.command import command_line as command_line_of
from varlit.page.drawing import Studio
from varlit.page.requests import Bounds, parse_request
from varlit.page.server import PageServer

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    codebook_size=16,
    codebook_dim=4,
    scales=(1, 3, 8),
)
SIDE_PX = TOKENIZER.image_size  # 32; a tile of a sheet shows it three times as large


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    save_tokenizer(VQVAE(TOKENIZER), root / "tok")
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 3)
    for parameter in var.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_var(var, root / "tok", root / "var", ("ant", "bee", "cow"))
    return root


@pytest.fixture
def studio(runs: Path) -> Studio:
    var = load("var", runs)
    assert isinstance(var, PretrainedVAR)
    opened = Opened("var", 3, tuple(var.class_names), ("--root", str(runs), "--device", "cpu"))
    return Studio(var, var.tokenizer, opened)


def typed(line: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    monkeypatch.chdir(folder)
    assert command_line.main([*shlex.split(line)[1:], *more]) == 0


def pictures(event: dict) -> list[np.ndarray]:
    files = [io.BytesIO(base64.b64decode(text)) for text in event["images"]]
    return [np.asarray(Image.open(file)) for file in files]


def drawn(studio: Studio, **changes: object) -> tuple[str, list[np.ndarray]]:
    fields = {"label": 2, "cfg_scale": 2.5, "top_k": 9, "top_p": 0.9, "seed": 7, "num_variants": 3}
    request = parse_request(json.dumps(fields | changes).encode(), studio.bounds)
    start, *_, last, _ = studio.draw(request, lambda: False)
    return start["command"], pictures(last)


@pytest.mark.parametrize("label", [2, None])
def test_the_copied_command_draws_what_the_page_shows(studio, label, tmp_path, monkeypatch):
    line, shown = drawn(studio, label=label)
    typed(line, monkeypatch, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "samples.png"))
    margin, tile, gap = 28, 3 * SIDE_PX, 6
    for i, picture in enumerate(reversed(shown)):
        right = sheet.shape[1] - margin - i * (tile + gap)
        assert (sheet[margin : margin + tile : 3, right - tile : right : 3] == picture).all()


def test_the_copied_command_guides_as_the_page_does(studio, tmp_path, monkeypatch):
    line, shown = drawn(studio, guidance="constant", num_variants=1)
    typed(line, monkeypatch, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "samples.png"))
    tile = sheet[28 : 28 + 3 * SIDE_PX : 3, -28 - 3 * SIDE_PX : -28 : 3]
    assert (tile == shown[0]).all()
    assert (drawn(studio, num_variants=1)[1][0] != shown[0]).any()


@pytest.mark.parametrize(
    "names",
    [
        ("none", "-x", "#1", "bee"),
        ("None", "a, b", "1", "0"),
        ("2", "2, of two", "1", "A"),
        ("--root", "", "a", "A"),
        ("twin", "twin", " odd ", "cow's; rm -rf ~"),
    ],
)
def test_page_and_command_mean_the_same_class_whatever_it_is_called(names):
    opened, count = Opened("var", len(names), names), len(names)
    for label in range(count + 1):
        fields = {"label": None if label == count else label, "cfg_scale": 1.5, "top_k": 0}
        fields |= {"top_p": 0.9, "seed": 0, "num_variants": 1}
        request = parse_request(json.dumps(fields).encode(), Bounds(count, SIDE_PX))
        words = shlex.split(command_line_of(request, opened))
        typed_classes = sample.build_parser().parse_args(words[2:]).classes
        assert sample.parse_classes(typed_classes, count, names) == [label]


@pytest.mark.parametrize(
    "flags",
    [
        {"keep_rest": True},
        {"hide_masked": True},
        {"free_first_scale": True},
        {"refit_known": True, "free_first_scale": True},
    ],
)
def test_the_copied_command_edits_what_the_page_shows(studio, flags, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    mask = np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
    mask[5:20, 9:30] = 255
    edit = dict(flags)
    for name, array in {"image": noise, "mask": mask}.items():
        path = tmp_path / {"image": "picture.png", "mask": "mask.png"}[name]
        Image.fromarray(array).save(path)
        edit[name] = base64.b64encode(path.read_bytes()).decode()
    line, shown = drawn(studio, edit=edit)
    typed(line, monkeypatch, tmp_path, "--save_each")
    for seed, picture in zip((7, 8, 9), shown, strict=True):
        assert (np.asarray(Image.open(tmp_path / f"edited-{seed}.png")) == picture).all()


def no_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageServer, "run", PageServer.server_close)


def test_it_says_where_and_warns_beyond_loopback(runs, monkeypatch, capsys):
    no_serving(monkeypatch)
    words = ["demo", "var", "--root", str(runs), "--port", "0", "--no_browser"]
    assert command_line.main(words) == 0
    said = capsys.readouterr()
    assert "http://127.0.0.1:" in said.out
    assert said.err == ""
    assert command_line.main([*words, "--host", "0.0.0.0"]) == 0
    said = capsys.readouterr()
    assert "anyone who can reach port" in said.err
    assert "http://localhost:" in said.out


def test_a_browser_is_opened_where_there_is_a_screen_only(runs, monkeypatch):
    no_serving(monkeypatch)
    opened: list[str] = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    words = ["demo", "var", "--root", str(runs), "--port", "0"]
    for screen, flag in (("", ""), (":0", "--no_browser"), (":0", "")):
        monkeypatch.setenv("DISPLAY", screen) if screen else monkeypatch.delenv("DISPLAY", False)
        monkeypatch.delenv("WAYLAND_DISPLAY", False)
        assert command_line.main([*words, *([flag] if flag else [])]) == 0
    assert len(opened) == 1


def test_what_cannot_be_shown_is_one_line(runs, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = {
            "is a tokenizer, expected a VAR": ["tok"],
            "no model `nothing`": ["nothing"],
            "or --port 0": ["var", "--port", port],
            "--device cuda": ["var", "--device", "cuda"],
        }
        for said, words in cases.items():
            if words[-1] == "cuda" and torch.cuda.is_available():
                continue
            assert command_line.main(["demo", *words, "--root", str(runs), "--no_browser"]) == 2
            err = capsys.readouterr().err
            assert said in err
            assert err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(runs):
    words = ["demo", "var", "--root", str(runs), "--port", "0", "--no_browser", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "varlit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes its children deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port)):  # somebody who says nothing
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "the page is closed" in out
    assert err == ""
