"""Programs that bring streamed shards end with whoever reads from them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

PROGRAM = "sleep 600"
SHARDS = f"pipe:{PROGRAM}; cat x-{{0..1}}.tar"
READING = f"""
import os, sys, time
import webdataset.tariterators
from varlit.data.formats.tar_stream import read_text
if sys.argv[1] == "worker" and os.fork():
    time.sleep(600)
read_text({SHARDS!r})
"""
FIT = ("-m", "varlit", "tokenizer", "fit", "-c", "digits", "--data", "ImageDataModule")
ENDED_WITHIN_S = 10


def comes(is_so: Callable[[], bool], limit_s: float) -> bool:
    end_s = time.monotonic() + limit_s
    while not is_so() and time.monotonic() < end_s:
        time.sleep(0.05)
    return is_so()


def assert_nothing_stays(command: Any, number: int, is_worker: bool = False) -> None:
    """Send whoever reads a signal amid its first read, and look for what it had started."""

    def programs() -> list[str]:
        return [words for words in command.alive().values() if not words.startswith(sys.executable)]

    try:
        assert comes(lambda: any(words.startswith(PROGRAM) for words in programs()), 60)
        main = command.process.pid
        reader = next(
            n
            for n, words in command.alive().items()
            if (n != main) == is_worker and words.startswith(sys.executable)
        )
        os.kill(reader, number)
        assert comes(lambda: not programs(), ENDED_WITHIN_S), programs()
        assert comes(lambda: is_worker == (main in command.alive()), ENDED_WITHIN_S)
    finally:
        command.kill()


@pytest.mark.parametrize("reader", ["main", "worker"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_killed_reader_leaves_no_program(start: Any, reader: str, number: int) -> None:
    assert_nothing_stays(start("-c", READING, reader), number, is_worker=reader == "worker")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_stopped_while_it_opens_its_data_leaves_no_program(
    start: Any, number: int
) -> None:
    words = (*FIT, "--data.root", SHARDS, "--gpus", "0", "--name", "s")
    assert_nothing_stays(start(*words), number)
