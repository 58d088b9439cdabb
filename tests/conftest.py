"""What every test may rely on: no network, one thread."""

import os
from typing import NoReturn

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download of weights fail at once, as without a network."""

    def refuse(url: str, *_: object, **__: object) -> NoReturn:
        raise OSError(f"tests do not download {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def pytest_configure() -> None:
    """Compute with one thread: many small tensors leave others waiting."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
