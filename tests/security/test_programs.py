"""TorchScript files are programs: they are run at their user's word alone."""

from pathlib import Path

import pytest
import torch

from varlit.errors import UserError
from varlit.metrics.networks import open_network


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_is_not_even_opened_without_its_users_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was opened")

    (tmp_path / "net.pt").write_bytes(b"whatever it is")
    monkeypatch.setattr(torch.jit, "load", refuse)
    with pytest.raises(UserError, match="is a program, and to load it is to run it"):
        open_network("torchscript", str(tmp_path / "net.pt"))
    with pytest.raises(AssertionError, match="it was opened"):
        open_network("torchscript", str(tmp_path / "net.pt"), trust_torchscript=True)
