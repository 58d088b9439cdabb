"""Reading ahead: a thread fetches the next items while the last ones are in use."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
POLL_S = 0.1


def read_ahead(items: Generator[Item, None, None], depth: int) -> Iterator[Item]:
    """Yield what `items` yields, read by a thread that is up to `depth` items ahead.

    What `items` raises is raised here. The thread ends with this iterator.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | _End) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=POLL_S)
                return

    def fill() -> None:
        end = _End()
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    break
        except Exception as error:  # for the thread that asked, whatever it is
            end = _End(error)
        items.close()
        put(end)

    threading.Thread(target=fill, name="read-ahead", daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()


@dataclass(frozen=True)
class _End:
    """No more items, and why."""

    error: Exception | None = None
