import threading
from collections.abc import Generator

import pytest

from varlit.data.read_ahead import read_ahead


def numbers(limit: int, log: list[str]) -> Generator[int, None, None]:
    try:
        for i in range(limit):
            log.append(str(i))
            yield i
    finally:
        log.append("closed")


def read_ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def wait_for_threads() -> None:
    for thread in read_ahead_threads():
        thread.join(10)


def test_items_come_in_order_and_once() -> None:
    assert list(read_ahead(numbers(20, []), 3)) == list(range(20))


def test_it_reads_no_further_than_it_may() -> None:
    log: list[str] = []
    items = read_ahead(numbers(100, log), 2)
    next(items)
    assert len(log) <= 4, "one used, two ready, one in the hand"
    items.close()
    wait_for_threads()
    assert log[-1] == "closed"
    assert not read_ahead_threads()


def test_what_goes_wrong_is_raised_in_its_turn() -> None:
    def broken() -> Generator[int, None, None]:
        yield 1
        raise KeyError("gone")

    items = read_ahead(broken(), 5)
    assert next(items) == 1
    with pytest.raises(KeyError, match="gone"):
        next(items)
