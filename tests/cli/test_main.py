"""The dispatcher: the card without torch, verbs, the last word on errors."""

import errno
import subprocess
import sys
from types import SimpleNamespace

import pytest

from varlit import __version__
from varlit.cli import main as command_line
from varlit.errors import UserError

HEAVY = ("torch", "lightning", "numpy", "yaml", "rich")


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["tokenizer"], ["var", "--help"]])
def test_cards_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from varlit.cli.main import main; "
        f"assert main({words!r}) == 0; "
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "varlit" in done.stdout


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, varlit; assert 'torch' not in sys.modules; assert 'load' in dir(varlit)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_card_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([]) == 0
    card = capsys.readouterr().out
    for verb in command_line.VERBS:
        assert f"varlit {verb}" in card
    assert __version__ in card


def test_an_unknown_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["tokeniser", "fit"]) == 2
    captured = capsys.readouterr()
    assert "did you mean `varlit tokenizer`?" in captured.err
    assert captured.out == ""


def test_an_unknown_verb_of_a_stage_is_answered_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["var", "predicd"]) == 2
    assert "verbs: fit, validate, test" in capsys.readouterr().err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def verb(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(
        command_line.importlib, "import_module", lambda name: SimpleNamespace(main=verb)
    )


def test_a_mistake_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UserError("got a, expected b; do c"))
    assert command_line.main(["info"]) == 2
    assert capsys.readouterr().err == "varlit: got a, expected b; do c\n"


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, UserError("x"))
    monkeypatch.setenv("VARLIT_TRACEBACK", "1")
    with pytest.raises(UserError):
        command_line.main(["info"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_closed_disk_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, OSError(number, "reason", "runs/x/last.ckpt"))
    assert command_line.main(["info"]) == 2
    told = capsys.readouterr().err
    assert "runs/x/last.ckpt" in told
    assert "write elsewhere (--root or --out)" in told
    assert len(told.splitlines()) == 1


def test_other_system_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, FileNotFoundError(errno.ENOENT, "a fault of ours", "x"))
    with pytest.raises(FileNotFoundError):
        command_line.main(["info"])


def test_torchvision_for_another_torch_is_recognised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, RuntimeError("operator torchvision::nms does not exist"))
    assert command_line.main(["info"]) == 2
    assert "varlit doctor --pair" in capsys.readouterr().err


def test_an_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert command_line.main(["info"]) == 130
    assert capsys.readouterr().err == ""


def test_a_worker_says_which_one_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UserError("x"))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert command_line.main(["info"]) == 2
    assert capsys.readouterr().err == "varlit [process 3]: x\n"
