"""What every test may rely on: no network, one thread."""

import os
from collections import Counter
from typing import Any, NoReturn

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


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


class Casts(TorchDispatchMode):
    """Counts how often each matrix of a network, or any of a shape, is cast to half precision."""

    def __init__(self, network: torch.nn.Module | None = None, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.places = {w.data_ptr() for w in network.parameters()} if network else set()
        self.shape, self.counts = shape, Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            place, is_matrix = args[0].data_ptr(), args[0].dim() == 2
            if is_matrix and (place in self.places or tuple(args[0].shape) == self.shape):
                self.counts[place] += 1
        return out

    @property
    def most(self) -> int:
        """Casts of the matrix that was cast most often."""
        return max(self.counts.values(), default=0)


@pytest.fixture
def casts() -> type[Casts]:
    """Made of a network, or of the shape of its weights; counts within `with`."""
    return Casts
