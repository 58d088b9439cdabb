"""`varlit convert` both ways on small random models."""

import json

import pytest
import torch

from varlit.checkpoints.official import official_state
from varlit.checkpoints.official_shapes import HIT_STATISTIC
from varlit.cli import main as command_line
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_tokenizer, load_var, save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

SMALL = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=16,
    codebook_dim=4,
    scales=(1, 3, 8),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of its own, with both official files in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer, var = VQVAE(SMALL), VAR(VARConfig(depth=1, width=32, num_heads=2), SMALL, 3)
    hits = {HIT_STATISTIC: torch.rand(3, 16)}
    states = {"vae": official_state(tokenizer, hits), "var": official_state(var)}
    for name, state in states.items():
        torch.save(state, f"{name}.pth")
    parts = {"var_wo_ddp": states["var"], "vae_local": states["vae"]}
    torch.save({"trainer": parts, "args": {}}, "ar-ckpt-last.pth")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Convert; returns the exit code and what was printed, and forgets it."""

    def convert(*words):
        code = command_line.main(["convert", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return convert


def bits(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    one, other = bits(one), bits(other)
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_both_files_go_there_and_back_by_the_commands_that_are_printed(run, folder):
    code, text = run("vae.pth", "--scales", "1,3,8")
    assert code == 0
    assert "vae.pth: VQVAE, " in text
    assert "16 codes of dimension 4, 16 px, scales 1,3,8" in text
    assert "next: varlit convert var_d16.pth --tokenizer runs/vae" in text
    code, text = run("var.pth", "--tokenizer", "vae")
    assert code == 0
    assert "var.pth: VAR of depth 1, width 32, " in text
    assert "3 classes" in text
    assert "next: varlit sample runs/var" in text
    with pytest.warns(UserWarning, match="the official code builds no model with width 32"):
        code, text = run("var", "--to", "official", "--out", "back/var.pth")
    assert "depth=1, num_classes=3, shared_aln=False, attn_l2_norm=True" in text
    assert "next: varlit convert runs/var/tokenizer --to official" in text
    with pytest.warns(UserWarning, match=r"channel_multipliers \(1, 1\)"):
        run("runs/var/tokenizer", "--to", "official", "--out", "back/vae.pth")
    assert same("var.pth", "back/var.pth")
    assert same("vae.pth", "back/vae.pth"), "the statistic came along into the VAR's folder"


def test_what_was_converted_draws(run, folder):
    run("ar-ckpt-last.pth", "--out", "here")
    words = ["sample", "here", "--per_class", "1", "--device", "cpu", "--out", "s.png"]
    assert command_line.main(words) == 0
    assert (folder / "s.png").stat().st_size > 0


def test_a_training_checkpoint_brings_its_tokenizer(run):
    code, text = run("ar-ckpt-last.pth", "--search", "cosine")
    assert code == 0
    assert "ar-ckpt-last.pth: VAR of depth 1" in text
    assert "ar-ckpt-last.pth: VQVAE" in text
    found = load_var("runs/ar-ckpt-last")
    assert found.tokenizer.config.scales == (1, 3, 8)
    assert found.tokenizer.config.search == "cosine"
    with pytest.warns(UserWarning, match="the official code builds no"):
        run("runs/ar-ckpt-last/tokenizer", "--to", "official", "--out", "back.pth")
    assert same("vae.pth", "back.pth")
    code, text = run("ar-ckpt-last.pth", "--tokenizer", "runs/ar-ckpt-last/tokenizer")
    assert code == 2
    assert "has its tokenizer in it" in text


def test_a_var_without_a_tokenizer_says_how_to_add_one_and_takes_it(run):
    code, text = run("var.pth")
    assert code == 0
    assert "next: varlit convert var.pth --out runs/var --tokenizer RUN" in text
    assert load_var("runs/var").bundled is None
    run("vae.pth", "--scales", "1,2,4")
    assert run("var.pth", "--out", "runs/var", "--tokenizer", "vae")[0] == 0
    assert load_var("runs/var").tokenizer.config.scales == (1, 3, 8), "those of the VAR"
    # Once more without: what is there stays.
    assert run("var.pth")[0] == 0
    assert load_var("runs/var").bundled is not None


def test_names_of_classes_survive_a_second_conversion(run):
    run("var.pth")
    save_var(load_var("runs/var").var, None, load_var("runs/var").folder, ("ant", "bee", "cow"))
    assert run("var.pth")[0] == 0
    assert load_var("runs/var").class_names == ("ant", "bee", "cow")


def test_another_model_is_never_overwritten(run, folder):
    run("vae.pth", "--scales", "1,3,8")
    before = (folder / "runs/vae/config.json").read_bytes()
    for words in (["var.pth", "--out", "runs/vae"], ["vae.pth", "--scales", "1,2,3"]):
        code, text = run(*words)
        assert code == 2
        assert "nothing was written" in text
    code, text = run("vae", "--to", "official", "--out", "var.pth")
    assert (code, "left alone" in text) == (2, True)
    assert (folder / "runs/vae/config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pth"], "there is no file none.pth"),
        (["tok"], "is a folder"),
        (["runs/tok"], "varlit convert runs/tok --to official --out FILE.pth"),
        (["vae.pth"], "has 3 scales"),
        (["vae.pth", "--scales", "a"], "--scales wants whole numbers"),
        (["vae.pth", "--scales", "3,2"], "must be positive and grow"),
        (["vae.pth", "--scales", "1,3,8", "--tokenizer", "tok"], "holds a VQVAE"),
        (["var.pth", "--tokenizer", "vae.pth"], "varlit convert vae.pth"),
        (["var.pth", "--tokenizer", "d1"], "holds a VAR; its own one is in runs/d1/tokenizer"),
        (["var.pth", "--tokenizer", "big"], "16 codes of dimension 4, and the tokenizer has 17"),
        (["var.pth", "--to", "official"], "is a file, and --to official takes a run"),
        (["tok", "--to", "official", "--scales", "1,3"], "--scales is for official files"),
        (["tok", "--to", "official", "--out", "tok.pt"], "writes a .pth file"),
        (["nothing", "--to", "official"], "no model `nothing`"),
        (["var.pth", "--sclaes", "1"], "did you mean `--scales`"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_says_what_to_do(words, message, run, folder):
    tokenizer = VQVAE(SMALL)
    save_tokenizer(tokenizer, folder / "runs/tok")
    save_var(VAR(VARConfig(depth=1), SMALL, 2), tokenizer, folder / "runs/d1")
    big = TokenizerConfig.of(SMALL.to_dict() | {"codebook_size": 17})
    save_tokenizer(VQVAE(big), folder / "runs/big")
    before = sorted(folder.rglob("*"))
    code, text = run(*words)
    assert code == 2
    assert message in text
    assert text.count("\n") == 1
    assert sorted(folder.rglob("*")) == before, "nothing was written"


def test_what_is_ignored_is_said(run):
    with pytest.warns(UserWarning, match="--search is the tokenizer's"):
        run("var.pth", "--search", "cosine")


def test_half_precision_is_said(run):
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in bits("var.pth").items()},
        "half.pth",
    )
    assert "note: half.pth is in float16; written as float32" in run("half.pth")[1]


def test_a_tokenizer_that_was_trained_here_has_zeros_for_the_statistic(run, folder):
    save_tokenizer(VQVAE(SMALL), folder / "runs/tok")
    with pytest.warns(UserWarning, match="the official code builds no"):
        assert run("tok", "--to", "official")[0] == 0
    state = bits("tok.pth")
    assert torch.equal(state[HIT_STATISTIC], torch.zeros(3, 16))
    assert json.loads((folder / "runs/tok/config.json").read_text())["model"] == "tokenizer"
    assert len(load_tokenizer("runs/tok").state_dict()) == len(state) - 1
