"""Errors of the parser: what they say, and the key that may have been meant."""

import pytest
from jsonargparse import ArgumentParser

from varlit.cli import main as command_line
from varlit.cli.config.parser import nearest_key, prefer_integers, shorten

KEYS = ["model.var.depth", "model.optim.lr", "model.optim", "trainer.max_epochs", "gpus"]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("model.depth", "model.var.depth"),
        ("model.optm.lr", "model.optim.lr"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("gpu", "gpus"),
        ("bogus", ""),
    ],
)
def test_the_last_part_of_a_key_decides(key: str, nearest: str) -> None:
    assert nearest_key(key, KEYS) == nearest


def test_long_messages_are_cut() -> None:
    assert len(shorten("x " * 1000)) <= 300
    assert shorten("Parser key \"a.b\": Expected a <class 'int'>. Got value: x") == (
        "a.b: expected int, got x"
    )


@pytest.mark.parametrize(
    ("words", "says", "hints"),
    [
        (["--model.dept", "3"], "there is no flag --model.dept", "`model.var.depth`"),
        (["--trainer.max_epoch=3"], "there is no flag", "`trainer.max_epochs`"),
        (["--samples.every", "3"], "there is no flag", "--help"),
        (["--model.optim.lr", "!!int ''"], "`!!int ''` is no value in YAML; quote it", ""),
        (["--model.optim.lr=!!bool x"], "!!bool x` is no value in YAML; quote it", ""),
        (["--model.optim.lr", "!!timestamp x"], "`!!timestamp x` is no value in YAML", ""),
        (["-c", "a" * 3000], "no file and no var recipe is called `aaa", "recipes: "),
        (["--trainer", "a" * 3000], "trainer: ", ""),
        (["--model.optim.lr", "fast"], "model.optim.lr: expected float, got fast", ""),
        (["--model.num_classes", "3"], "num_classes", ""),
        (["-c", "d61"], "recipe", "`-c d16`"),
    ],
)
def test_mistakes_in_flags_of_var(
    words: list[str], says: str, hints: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["var", "fit", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("varlit: ")
    assert says in told
    assert hints in told
    assert len(told.splitlines()) <= 2, "no usage dump"


@pytest.mark.parametrize(
    ("words", "says", "hints"),
    [
        (["--data.rot", "x"], "'ImageDataModule' has no setting 'rot'", "`data.root`"),
        (["--data", "DigitDataModule"], "no class 'DigitDataModule'", "`DigitsDataModule`"),
        (["-c", "digits", "--data.batch_size", "x"], "batch_size: expected int, got x", ""),
        (["-c", "digits", "--bogus"], "there is no flag --bogus", "--help"),
    ],
)
def test_mistakes_in_flags_of_the_tokenizer(
    words: list[str], says: str, hints: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["tokenizer", "fit", *words]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert hints in told
    assert len(told.splitlines()) <= 2, "no usage dump"


def test_an_unknown_key_in_a_file_is_named(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path_factory.mktemp("conf") / "mine.yaml"
    path.write_text("model: {optm: {lr: 0.1}}\n")
    assert command_line.main(["var", "fit", "-c", str(path)]) == 2
    told = capsys.readouterr().err
    assert "there is no key 'model.optm.lr'" in told
    assert "did you mean `model.optim.lr`?" in told


@pytest.mark.parametrize("hint", [float | int | None, float | int, int | float | None])
def test_a_whole_number_stays_one_where_a_share_is_allowed_too(hint: type) -> None:
    parser = ArgumentParser()
    parser.add_argument("--limit", type=hint)
    prefer_integers(parser)
    assert repr(parser.parse_args(["--limit", "1"]).limit) == "1"
    assert repr(parser.parse_args(["--limit", "0.5"]).limit) == "0.5"
