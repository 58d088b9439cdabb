"""What strangers leave: objects that run code when they are unpickled, and a trap to see it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A file that code would leave behind; each test ends by looking for it."""
    file = tmp_path / "the-code-was-run"
    yield file
    assert not file.exists(), "a file of a stranger has run code"


@pytest.fixture
def bomb(trap: Path) -> Bomb:
    return Bomb(trap)
