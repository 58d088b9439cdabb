"""Jobs shared out over processes that end with the one that began them, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from varlit.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    work: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int
) -> Iterator[tuple[Job, Result]]:
    """Do all jobs and yield each with its result as soon as it is done.

    Args:
        work: A function of a module; its errors stop everything.
        jobs: What to call it with; they and the results are sent between processes.
        num_workers: Processes; with one the work is done in this one.

    Raises:
        UserError: If a process is killed.
    """
    if num_workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, work(job)
        return
    # Spawned and not forked: what threads of this process hold locked would stay locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_workers, len(jobs)), context, begin_worker)
    try:
        job_of = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(job_of):
            yield job_of[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory: run the same command again "
            "with fewer --workers; what is finished is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """Leave Ctrl-C to the first process, and end with it however it ends."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
