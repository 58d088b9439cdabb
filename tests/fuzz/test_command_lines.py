"""Words typed at random: no traceback, no hang, exit codes 0, 1 or 2, and one clear line."""

import faulthandler
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.command_lines import (
    ODD_WORDS,
    TRAIN_OR_SERVE,
    is_safe,
    known_lines,
    mutate_line,
    run_line,
)
from tests.fuzz.kinds import Refused
from varlit.cli.config.recipes import STAGES
from varlit.cli.main import VERBS

LINES = json.dumps(known_lines()).encode()
VERBS_THAT_PARSE = sorted(set(VERBS) - TRAIN_OR_SERVE)
LIMIT_S = 120

words_of_any = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(ODD_WORDS)), max_size=4)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARLIT_CACHE", "")
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def check(words: list[str]) -> None:
    """Run a line, in a folder that is empty again for the next one."""
    try:
        run_line(words)
    except Refused as refusal:
        require_one_line(refusal)
    finally:
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@settings(max_examples=5)
@given(st.integers(0, 2**20))
@pytest.mark.slow
def test_a_changed_command_of_the_pages_is_run_or_refused(number: int) -> None:
    check_changed(number)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 2**20))
def test_many_changed_commands_of_the_pages_are_run_or_refused(number: int) -> None:
    check_changed(number)


def check_changed(number: int) -> None:
    (words,) = json.loads(mutate_line(LINES, Random(number)))
    if words and is_safe(words):
        check(words)


@settings(max_examples=15)
@given(st.sampled_from(VERBS_THAT_PARSE), words_of_any)
def test_any_words_after_a_verb_are_understood_or_refused(verb: str, words: list[str]) -> None:
    if is_safe([verb, *words]):
        check([verb, *words])


@settings(max_examples=15)
@given(words_of_any)
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    if words and is_safe(words):
        check(words)


@pytest.mark.parametrize("words", [["help"], ["help", "help"], ["--help", "-h", "x"]])
def test_help_on_help_is_the_card(words: list[str]) -> None:
    assert run_line(words).startswith("varlit ")


KEYS = ("model.var.depth", "model.optim.lr", "model.tokenizer.scales", "trainer.max_epochs", "x.y")


@settings(max_examples=15)
@given(st.sampled_from(["d16", "digits"]), st.sampled_from(KEYS), st.sampled_from(ODD_WORDS))
def test_any_value_of_a_setting_is_priced_or_refused(recipe: str, key: str, value: str) -> None:
    check(["info", recipe, f"--{key}", value])


@pytest.mark.slow
@settings(max_examples=8)
@given(st.sampled_from(STAGES), st.sampled_from(KEYS), st.sampled_from(ODD_WORDS))
def test_any_value_of_a_setting_is_trained_with_or_refused(
    stage: str, key: str, value: str
) -> None:
    check([stage, "fit", "-c", "digits", f"--{key}", value])


def require_one_line(refusal: Refused) -> None:
    """Fail where a refusal says nothing, or more than a person reads."""
    assert 3 < len(str(refusal)) <= 300
