"""`varlit edit` on a small random model: photos of any kind, masks, boxes, canvases, mistakes."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.cli import main as command_line
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=16,
    codebook_dim=4,
    scales=(1, 3, 8),
)
SIDE = 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    save_tokenizer(VQVAE(TOKENIZER), root / "tok")
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 3)
    save_var(var, root / "tok", root / "var", ("ant", "bee", "cow"))
    return root


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A square photo that the model sees as it is."""
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*words: object) -> int:
    return command_line.main([str(word) for word in words])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pasted_pixels_are_those_of_the_file(runs: Path, photo: Path, tmp_path: Path, capsys):
    out = tmp_path / "e.png"
    words = ["edit", "var", photo, "--root", runs, "--out", out, "--save_each", "--variants", 2]
    words += ["--box", "0,0,0.5,1", "--seed", 5]
    assert run(*words, "--paste", "--feather_px", 1, "--class", "Bee") == 0
    said = capsys.readouterr().out
    assert "photo.png: 16x16 px, all of it, as 16x16" in said
    assert f"original, mask and 2 pictures: {out}" in said
    own, one, two = (pixels(p) for p in (photo, tmp_path / "e-5.png", tmp_path / "e-6.png"))
    assert (one[:, 9:] == own[:, 9:]).all()
    assert (two[:, 9:] == own[:, 9:]).all()
    assert (one[:, :8] != two[:, :8]).any()
    assert run(*words) == 0
    assert (pixels(tmp_path / "e-5.png")[:, 9:] != own[:, 9:]).any(), "a reconstruction"


def test_the_next_line_is_the_same_command_for_the_next_seeds(
    runs: Path, photo: Path, tmp_path: Path, capsys
):
    out = tmp_path / "e.png"
    words = ["edit", "var", photo, "--root", runs, "--out", out, "--box", "0,0,.5,1", "--seed", 3]
    assert run(*words, "--variants", 2) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("next: "))
    again = shlex.split(line)[1:]
    again = again[again.index("edit") :]
    sheet = tmp_path / "e-seed5.png"
    assert again[-4:] == ["--seed", "5", "--out", str(sheet)]
    assert (again.count("--seed"), again.count("--out")) == (1, 1)
    before = out.read_bytes()
    assert run(*again) == 0
    assert out.read_bytes() == before, "the sheet just made is not written over"
    assert sheet.exists()


def test_photo_and_mask_are_not_written_over(runs: Path, photo: Path, tmp_path: Path, capsys):
    mask = tmp_path / "sheet-8.png"
    Image.new("L", (SIDE, SIDE), 255).save(mask)
    (tmp_path / "link.png").hardlink_to(photo)
    before = photo.read_bytes(), mask.read_bytes()
    words = ["edit", "var", photo, "--root", runs, "--mask", mask, "--seed", 7, "--variants", 2]
    each = ["--out", tmp_path / "sheet.png", "--save_each"]
    for more in (["--out", photo], ["--out", tmp_path / "link.png"], ["--out", mask], each):
        assert run(*words, *more) == 2
        assert "is read here and would be overwritten" in capsys.readouterr().err
    assert (photo.read_bytes(), mask.read_bytes()) == before
    assert run(*words[:-4], "--variants", 1, *each) == 0


@pytest.mark.slow
def test_warnings_are_one_line_without_source(runs: Path, photo: Path, tmp_path: Path):
    words = ["edit", "var", photo, "--root", runs, "--box", "0,0,1,1", "--variants", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "varlit", *map(str, words), "--out", str(tmp_path / "e.png")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("varlit: warning: everything is to be drawn")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--box", "0,0,.5,1", "--top_p", "2"], "top_p must lie in 0..1"),
        (["--box", "0,0,.5,1", "--paste", "--feather_px", "-1"], "feather_px must be"),
        (["--box", "0,0,.5,1", "--seed", "9223372036854775807"], "got 9223372036854775807"),
        (["--outpaint", "left", "--seed", "9223372036854775800"], "got 9223372036854775800"),
        (["--outpaint", "left", "--seed", "-9223372036854775800"], "got -9223372036854775800"),
    ],
)
def test_what_needs_no_model_is_refused_before_it_is_read(
    photo: Path, tmp_path: Path, words: list[str], said: str, monkeypatch, capsys
):
    monkeypatch.setattr("varlit.checkpoints.pretrained.load", lambda *_: 1 / 0)
    assert run("edit", "var", photo, *words, "--out", tmp_path / "x.png") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_photos_of_any_mode_and_ratio_are_edited(runs: Path, tmp_path: Path, mode: str, capsys):
    kind = {"CMYK": "jpg"}.get(mode, "png")
    path = tmp_path / f"photo.{kind}"
    source = Image.new("L" if mode == "I;16" else "RGB", (50, 23), 90)
    source.convert(mode if mode != "I;16" else "I").convert(mode).save(path)
    out = tmp_path / "e.png"
    assert run("edit", "var", path, "--root", runs, "--box", "0,0,1,.5", "--out", out) == 0
    assert "50x23 px, its centre, 23x23 px, as 16x16" in capsys.readouterr().out


def test_a_mask_and_its_inversion_share_the_picture(
    runs: Path, photo: Path, tmp_path: Path, capsys
):
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "e.png"
    words = ["edit", "var", photo, "--root", runs, "--out", out, "--save_each", "--variants", 1]
    words += ["--mask", tmp_path / "mask.png", "--paste", "--feather_px", 0]
    own = pixels(photo)
    assert run(*words) == 0
    assert (pixels(tmp_path / "e-0.png")[:, 8:] == own[:, 8:]).all()
    assert run(*words, "--invert") == 0
    assert (pixels(tmp_path / "e-0.png")[:, :8] == own[:, :8]).all()


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--outpaint", "left,right"], (32, 16)),
        (["--outpaint", "bottom", "--extend", "1"], (16, 32)),
        (["--outpaint", "3:1"], (48, 16)),
        (["--place", "0.5"], (16, 16)),
        (["--place", "0.5", "--outpaint", "2:1"], (32, 16)),
        (["--place", "0.4", "--outpaint", "left"], (16, 16)),
    ],
)
def test_a_canvas_beyond_the_photo_is_drawn(
    runs: Path, photo: Path, tmp_path: Path, words: list[str], size: tuple[int, int], capsys
):
    out = tmp_path / "e.png"
    common = ["edit", "var", photo, "--root", runs, "--out", out, "--save_each", "--variants", 1]
    assert run(*common, *words) == 0
    assert f"on a canvas of {size[0]}x{size[1]}" in capsys.readouterr().out
    assert Image.open(tmp_path / "e-0.png").size == size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edit", "tok", "PHOTO", "--box", "0,0,.5,1"], "holds a tokenizer, not a VAR"),
        (["edit", "var", "no.png", "--box", "0,0,.5,1"], "there is no photo no.png"),
        (["edit", "var", "TEXT", "--box", "0,0,.5,1"], "does not open as an image"),
        (["edit", "var", "PHOTO"], "say what is drawn anew by one of: --box"),
        (["edit", "var", "PHOTO", "--box", "0,0,1,1", "--place", ".5"], "by one of: --box"),
        (["edit", "var", "PHOTO", "--box", "0,0,2,1"], "got `0,0,2,1`"),
        (["edit", "var", "PHOTO", "--mask", "no.png"], "there is no mask no.png"),
        (["edit", "var", "PHOTO", "--mask", "TEXT"], "does not open as an image"),
        (["edit", "var", "PHOTO", "--mask", "LARGE"], "is 20x16 px and the photo 16x16"),
        (["edit", "var", "PHOTO", "--mask", "BLACK"], "nothing is to be drawn"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--class", "dog"], "--class: got `dog`"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--class", "0,1"], "takes one class"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--variants", "0"], "--variants must be"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--top_p", "2"], "top_p must lie in 0..1"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--feather_px", "2"], "add --paste"),
        (["edit", "var", "PHOTO", "--outpaint", "up"], "got `up`, expected some of left, right"),
        (["edit", "var", "PHOTO", "--outpaint", "1:1"], "nothing is to be drawn"),
        (["edit", "var", "PHOTO", "--outpaint", "0:1"], "got `0:1`, expected some of"),
        (["edit", "var", "PHOTO", "--outpaint", "99:1"], "expected a ratio up to 16:1"),
        (["edit", "var", "PHOTO", "--outpaint", "left", "--extend", "0"], "--extend must lie"),
        (["edit", "var", "PHOTO", "--place", "2"], "--place must lie above 0 and up to 1"),
        (["edit", "var", "PHOTO", "--place", ".5", "--invert"], "--outpaint has neither"),
        (["edit", "var", "PHOTO", "--place", ".5", "--paste"], "--paste is for a --box or --mask"),
        (["edit", "var", "PHOTO", "--outpaint", "all", "--hide_masked"], "--hide_masked is for"),
        (["edit", "var", "PHOTO", "--outpaint", "2:1", "--refit_known"], "--refit_known is for"),
        (["edit", "var", "PHOTO", "--outpaint", "2:1", "--extend", "1"], "changes nothing"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--extend", "0.5"], "changes nothing"),
        (["edit", "var", "PHOTO", "--place", "0.5", "--extend", "0.5"], "changes nothing"),
        (["edit", "var", "PHOTO", "--box", "0,0,.5,1", "--out", "x.gif"], "a .png file"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    runs: Path, photo: Path, tmp_path: Path, words: list[str], said: str, capsys
):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (20, 16), 255).save(tmp_path / "large.png")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    names = {"PHOTO": photo} | {
        w: tmp_path / f"{w.lower()}.png" for w in ("TEXT", "LARGE", "BLACK")
    }
    out = [] if "--out" in words else ["--out", tmp_path / "x.png"]
    assert run(*(names.get(word, word) for word in words), "--root", runs, *out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error
    assert not (tmp_path / "x.png").exists()


def test_too_little_memory_is_answered_with_a_batch_that_fits(
    runs: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    from varlit.generation.sampler import Sampler

    draw = Sampler.draw

    def small_only(self: Sampler, labels: torch.Tensor, *args: object, **fields: object):
        if len(labels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(self, labels, *args, **fields)

    monkeypatch.setattr(Sampler, "draw", small_only)
    words = ["edit", "var", photo, "--root", runs, "--out", tmp_path / "x.png"]
    assert run(*words, "--box", "0,0,.5,1", "--variants", 4) == 2
    assert "batch_size 1 was tried and fits" in capsys.readouterr().err
    assert run(*words, "--box", "0,0,.5,1", "--variants", 4, "--batch_size", 1) == 0


@pytest.mark.parametrize("what", [("--box", "0,0,.5,1"), ("--place", ".4")])
def test_in_half_precision_weights_are_cast_once(
    runs: Path, photo: Path, tmp_path: Path, casts, what: tuple[str, str]
):
    words = ["edit", "var", photo, "--root", runs, "--out", tmp_path / "x.png", "--batch_size", 1]
    with casts(shape=(96, 32)) as seen:  # queries, keys and values of a block
        assert run(*words, *what, "--precision", "bf16", "--device", "cpu") == 0
    assert seen.most == 1
