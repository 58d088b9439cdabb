"""Recording what a function launches on a GPU, to launch it again in one go."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")

# The first run compiles and chooses kernels, the second still fills caches of libraries.
WARMUP_RUNS = 3


class Recorder(Protocol):
    """Makes a function that does again what another did, into the same memory."""

    def record(self, run: Callable[[], T]) -> Callable[[], T]:
        """Run it and return its replay.

        Args:
            run: Reads tensors that stay where they are, never waits for the device, draws no
                random numbers, and always launches the same.

        Returns:
            Fills the same tensors at every call; what must last is to be copied.
        """
        ...


class CudaRecorder:
    """Records one CUDA graph for a function.

    Its graphs share their memory: they never run at the same time, and nothing in it has to last
    from one replay to the next.

    Args:
        device: Where the function runs.
    """

    def __init__(self, device: torch.device) -> None:
        # Of this device: torch would make one of whichever is current at the first capture.
        self._stream = torch.cuda.Stream(device)
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, run: Callable[[], T]) -> Callable[[], T]:
        """Warm up on the stream of the recording, then record."""
        device = self._stream.device
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            try:
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    for _ in range(WARMUP_RUNS):
                        run()
                before.wait_stream(self._stream)
                graph, pool = torch.cuda.CUDAGraph(), next((g.pool() for g in self._graphs), None)
                # Other threads, such as those of a loader, may use the GPU meanwhile.
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    out = run()
            finally:
                # A recording that fails may leave its own stream the current one.
                torch.cuda.set_stream(before)
        self._graphs.add(graph)

        def replay() -> T:
            with torch.cuda.device(device):
                graph.replay()
            return out

        return replay
