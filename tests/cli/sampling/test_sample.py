"""`varlit sample` and `varlit reconstruct` on small random models."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from varlit.cli import main as command_line
from varlit.cli.arguments import check_writable
from varlit.errors import UserError
from varlit.generation.sampler import Drawn, Sampler
from varlit.models.classifier import Classifier
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    save_tokenizer(VQVAE(TOKENIZER), root / "tok")
    var = VAR(VARConfig(depth=1, width=32, num_heads=2), TOKENIZER, 3)
    save_var(var, root / "tok", root / "var", ("ant", "bee", "cow"))
    return root


def run(*words: object) -> int:
    return command_line.main([str(word) for word in words])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_class_drawn_alone_looks_as_it_does_among_others(runs: Path, tmp_path: Path):
    one, all_three = tmp_path / "one.png", tmp_path / "all.png"
    words = ["sample", "var", "--root", runs, "--per_class", 2, "--seed", 5]
    assert run(*words, "--classes", "ant", "--out", one) == 0
    assert run(*words, "--out", all_three) == 0
    # Row labels differ in width; the tiles hang from the right.
    tiles = slice(40, 100), slice(-200, -30)
    assert np.ptp(pixels(one)[tiles]) > 0
    assert (pixels(one)[tiles] == pixels(all_three)[tiles]).all()


def test_the_growing_picture_ends_with_a_column_a_scale(runs: Path, tmp_path: Path):
    out = tmp_path / "s.png"
    assert run("sample", runs / "var", "--classes", "0,2", "--growing", "--out", out) == 0
    assert out.exists()
    assert pixels(tmp_path / "s-growing.png").shape[1] > pixels(tmp_path / "s-growing.png").shape[0]


def test_reconstructions_of_files_of_any_kind_are_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    Image.new("L", (40, 30), 90).save(tmp_path / "grey.png")
    Image.new("RGB", (16, 70), "red").save(tmp_path / "tall.jpg")
    files, out = [tmp_path / "grey.png", tmp_path / "tall.jpg"], tmp_path / "r.png"
    for model in ("tok", "var"):
        assert run("reconstruct", model, *files, "--root", runs, "--out", out) == 0
    assert "grey.png: PSNR" in capsys.readouterr().out
    assert out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "tok"], "holds a tokenizer, not a VAR"),
        (["sample", "vra"], "did you mean `var`?"),
        (["sample", "var", "--classes", "dog"], "expected 0..2 or names such as ant"),
        (["sample", "var", "--top_p", "2"], "top_p must lie in 0..1"),
        (["sample", "var", "--classes", "ant,0"], "`0` is given twice"),
        (["sample", "var", "--seed", "9223372036854775807"], "--seed: got 9223372036854775807"),
        (["sample", "var", "--cfg_scael", "2"], "did you mean `--cfg_scale`?"),
        (["sample", "var", "--per_class", "0"], "--per_class must be at least 1"),
        (["sample", "var", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["sample", "var", "--precision", "fp16"], "invalid choice: 'fp16'"),
        (["sample", "var", "--out", "/dev/null/x.png"], "give another --out"),
        (["sample", "var", "--out", "x.gif"], "--out wants the name of a .png file"),
        (["sample", "var", "--device", "cuda:7"], "no GPU was found"),
        (["reconstruct", "tok", "nothing.png"], "nothing.png does not open as an image"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    runs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path
):
    if "cuda:7" in words and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    out = [] if "--out" in words else ["--out", tmp_path / "x.png"]
    assert run(*words, "--root", runs, *out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_small_batches_draw_the_same_and_bf16_draws(runs: Path, tmp_path: Path):
    words = ["sample", "var", "--root", runs, "--per_class", 2, "--out"]
    assert run(*words, tmp_path / "one.png") == 0
    assert run(*words, tmp_path / "two.png", "--batch_size", 4) == 0
    assert run(*words, tmp_path / "three.png", "--precision", "bf16", "--growing") == 0
    gap = pixels(tmp_path / "one.png").astype(int) - pixels(tmp_path / "two.png")
    assert np.abs(gap).max() <= 1, "up to rounding"
    assert np.ptp(pixels(tmp_path / "three.png")) > 0


def test_too_little_memory_is_answered_with_a_batch_that_was_tried(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    words = ["sample", "var", "--root", runs, "--per_class", 7, "--out", tmp_path / "x.png"]
    plain, limit = Sampler.draw, 5

    def draw(self: Sampler, labels: torch.Tensor, *args: object, **options: object) -> Drawn:
        if len(labels) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, labels, *args, **options)

    monkeypatch.setattr("varlit.generation.sampler.Sampler.draw", draw)
    assert run(*words) == 2
    assert "--batch_size 64; --batch_size 5 was tried and fits" in capsys.readouterr().err
    assert run(*words, "--batch_size", 5) == 0
    limit = 0
    assert run(*words) == 2
    assert "even with one image at a time" in capsys.readouterr().err


def test_fast_is_taken_where_it_can_be_had_and_said_where_not(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    words = ["sample", "var", "--root", runs, "--device", "cpu", "--out"]
    assert run(*words, tmp_path / "plain.png") == 0
    assert run(*words, tmp_path / "not.png", "--no_fast") == 0
    with pytest.warns(UserWarning, match="need a CUDA GPU"):
        assert run(*words, tmp_path / "fast.png", "--fast") == 0
    plain = pixels(tmp_path / "plain.png")
    assert (plain == pixels(tmp_path / "fast.png")).all()
    assert (plain == pixels(tmp_path / "not.png")).all()
    assert run(*words, tmp_path / "x.png", "--fast", "--no_fast") == 2
    assert "not allowed with argument --fast" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(
        "varlit.generation.recorded.compiled.open_sampler",
        lambda var, tokenizer, fast, dtype, num_images: asked.append((fast, num_images)) or 1 / 0,
    )
    for flags in ((), ("--fast",), ("--no_fast",)):
        with pytest.raises(ZeroDivisionError):
            run(*words, tmp_path / "x.png", "--per_class", 5, *flags)
    assert asked == [(None, 15), (True, 15), (False, 15)]


def test_drawing_among_sorted_codes_draws_others_and_greedy_the_same(runs: Path, tmp_path: Path):
    words = ["sample", "var", "--root", runs, "--out"]
    pictures = []
    for kind in ("exact", "sorted"):
        for top_k in (1, 8):
            out = tmp_path / f"{kind}-{top_k}.png"
            assert run(*words, out, "--draw", kind, "--top_k", top_k, "--top_p", 0) == 0
            pictures.append(pixels(out))
    assert (pictures[0] == pictures[2]).all(), "one code is left"
    assert not (pictures[1] == pictures[3]).all()


def next_words(said: str) -> list[str]:
    line = next(line for line in said.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    return words[words.index("sample") :]


def test_the_next_line_keeps_every_flag_and_writes_another_picture(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "s.png"
    words = ["sample", "var", "--root", runs, "--classes", "bee", "--per_class", 2, "--top_k", 5]
    assert run(*words, "--seed=3", f"--out={out}", "--guidance", "constant") == 0
    first, again = pixels(out), next_words(capsys.readouterr().out)
    shared = [str(word) for word in words] + ["--guidance", "constant"]
    assert again == [*shared, "--seed", "5", "--out", str(tmp_path / "s-seed5.png")]
    assert run(*again) == 0
    third = next_words(capsys.readouterr().out)
    assert third[-3:] == ["7", "--out", str(tmp_path / "s-seed7.png")]
    assert (pixels(out) == first).all()
    assert not (pixels(tmp_path / "s-seed5.png") == first).all()


def test_the_photo_that_is_started_from_is_not_written_over(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    photo = tmp_path / "s-growing.png"
    Image.new("RGB", (16, 16), "red").save(photo)
    (tmp_path / "link.png").symlink_to(photo)
    before = photo.read_bytes()
    words = ["sample", "var", "--root", runs, "--per_class", 1, "--from", photo, "--out"]
    for more in ([photo], [tmp_path / "link.png"], [tmp_path / "s.png", "--growing"]):
        assert run(*words, *more) == 2
        assert "is read here and would be overwritten" in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert run(*words, tmp_path / "s.png") == 0


def gif_frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]


def test_the_gif_has_a_frame_a_scale_and_starts_with_what_seeds_share(runs: Path, tmp_path: Path):
    out = tmp_path / "s.png"
    assert run("sample", "var", "--root", runs, "--per_class", 2, "--gif", "--out", out) == 0
    frames = gif_frames(tmp_path / "s-growing.gif")
    assert len(frames) == len(TOKENIZER.scales)
    assert not (frames[0] == frames[-1]).all()
    assert not (tmp_path / "s-growing.png").exists()


def test_a_gif_of_many_images_says_what_it_leaves_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "s.png"
    words = ["--classes", "ant", "--per_class", 12, "--gif", "--growing", "--out", out]
    assert run("sample", "var", "--root", runs, *words) == 0
    told = capsys.readouterr().out
    assert "12 images of 1 class" in told
    assert "the first 10 classes and 10 images each" in told


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pictures_start_from_the_coarse_scales_of_a_photo(
    runs: Path, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        "varlit.cli.sampling.sample.write_pictures", lambda *given: shown.append(given)
    )
    words = ["sample", "var", "--root", runs, "--per_class", 3, "--from", photo, "--gif"]
    assert run(*words, "--keep_scales", 2, "--classes", "bee,none") == 0
    drawn, names, _, _, start = shown[0]
    assert names == ["bee", "no class"]
    assert (drawn.tokens[:, :10] == start.tokens[:, :10]).all()
    assert len(drawn.tokens[:, 10:].unique(dim=0)) > 1
    coarse = drawn.frames[1]
    torch.testing.assert_close(coarse, start.coarse.expand_as(coarse))
    said = capsys.readouterr().out
    assert f"--from '{photo}' --gif --keep_scales 2 --classes bee,none" in said
    assert run(*words) == 0
    assert shown[1][1] == ["no class"]
    assert shown[1][4].keep_scales == 1, "half of three"


def test_what_a_picture_started_from_is_shown_with_it(runs: Path, tmp_path: Path, photo: Path):
    words = ["sample", "var", "--root", runs, "--per_class", 2, "--from", photo, "--growing"]
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    assert run(*words, "--classes", "ant,bee", "--out", one) == 0
    assert run("sample", "var", "--root", runs, "--per_class", 2, "--out", other) == 0
    assert pixels(one).shape[1] > pixels(other).shape[1], "two columns more"
    assert (tmp_path / "one-growing.png").exists()


def test_chosen_pictures_start_from_the_photo_too(
    runs: Path, tmp_path: Path, photo: Path, classifier, monkeypatch: pytest.MonkeyPatch
):
    classifier(judge(3, ("ant", "bee", "cow")))
    shown = []
    monkeypatch.setattr(
        "varlit.cli.sampling.sample.write_pictures", lambda *given: shown.append(given)
    )
    words = ["--from", photo, "--keep_scales", 2, "--keep", 0.5, "--classifier", "toy:toy"]
    words += ["--classes", "ant", "--per_class", 2]
    assert run("sample", "var", "--root", runs, *words) == 0
    assert (shown[0][0].tokens[:, :10] == shown[0][4].tokens[:, :10]).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep_scales", 2], "give one: --from photo.jpg"),
        (["--from", "nothing.jpg"], "nothing.jpg: there is no such file"),
        (["--from", __file__], "does not open as an image"),
        (["--from", "PHOTO", "--keep_scales", 0], "keep_scales must lie in 1..2"),
        (["--from", "PHOTO", "--keep_scales", 3], "the scales are 1, 3, 8"),
        (["--from", "PHOTO", "--keep_scales", "x"], "invalid int value: 'x'"),
        (["--draw", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_a_start_that_cannot_be_made_is_refused_before_anything_is_drawn(
    runs: Path,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    words: list,
    said: str,
):
    monkeypatch.setattr("varlit.cli.sampling.sample.draw_in_batches", lambda *_: 1 / 0)
    words = [photo if word == "PHOTO" else word for word in words]
    assert run("sample", "var", "--root", runs, "--out", tmp_path / "x.png", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_folder_without_the_right_to_write_stops_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("varlit.cli.arguments.os.access", lambda *_: False)
    with pytest.raises(UserError, match="no right to write in"):
        check_writable(tmp_path / "x.png")


def judge(outputs: int, names: tuple[str, ...] = ()):
    """A classifier in place of one with weights: the brighter a channel, the likelier."""
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, outputs)
    )
    return Classifier(network, "toy", class_names=names)


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch):
    def put(found: Classifier) -> None:
        monkeypatch.setattr("varlit.models.classifier.open_classifier", lambda *_: found)

    return put


def test_a_classifier_chooses_and_what_it_took_is_told(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture, classifier
):
    classifier(judge(4, ("Bee", "ant", "cow", "x")))
    words = ["sample", "var", "--root", runs, "--per_class", 2, "--classifier", "toy:toy"]
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    assert run(*words, "--keep", 0.25, "--growing", "--batch_size", 3, "--out", one) == 0
    out = capsys.readouterr().out
    assert "drawn 24/24" in out
    assert "kept 6 of 24 images drawn (25.0%)" in out
    assert run(*words, "--keep", 0.25, "--batch_size", 50, "--out", other) == 0
    assert (pixels(one) == pixels(other)).all()


def test_a_class_that_the_classifier_does_not_know_stops_or_is_kept_aloud(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture, classifier
):
    classifier(judge(2, ("ant", "wasp")))
    words = ["sample", "var", "--root", runs, "--per_class", 2, "--out", tmp_path / "s.png"]
    words += ["--keep", 0.5, "--classifier", "toy:toy"]
    assert run(*words) == 2
    assert "toy:toy has no class for: bee, cow" in capsys.readouterr().err
    assert run(*words, "--unmatched", "keep") == 0
    out = capsys.readouterr().out
    assert "all images are kept of: bee, cow" in out
    assert "kept 2 of 4 images drawn (50.0%), and all 4 of other classes" in out
    assert run(*words, "--classifier_classes", "0,-,1", "--classes", "ant,cow") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", 0.5], "keep 0.5 needs a classifier"),
        (["--keep", 0, "--classifier", "a:b"], "above 0 and up to 1; got 0.0"),
        (["--classifier", "a:b"], "chooses nothing at keep 1"),
        (["--keep", 0.5, "--classifier", "a:b"], "has 5 classes and the model 3"),
        (["--keep", 0.5, "--classifier", "a:b", "--classifier_classes", "1,x,2"], "got `x`"),
        (["--keep", 0.5, "--classifier", "a:b", "--classifier_classes", "1,2"], "got 2"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_anything_is_drawn(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    classifier,
    monkeypatch: pytest.MonkeyPatch,
    words: list,
    said: str,
):
    classifier(judge(5))
    monkeypatch.setattr("varlit.cli.sampling.sample.draw_in_batches", lambda *_: 1 / 0)
    out = tmp_path / "s.png"
    assert run("sample", "var", "--root", runs, "--out", out, *words) == 2
    assert said in capsys.readouterr().err


def test_in_half_precision_weights_are_cast_once(runs: Path, tmp_path: Path, casts):
    words = ["sample", "var", "--root", runs, "--out", tmp_path / "x.png", "--batch_size", 2]
    width = 32
    with casts(shape=(3 * width, width)) as seen:  # queries, keys and values of a block
        assert run(*words, "--precision", "bf16", "--device", "cpu") == 0
    assert seen.most == 1
