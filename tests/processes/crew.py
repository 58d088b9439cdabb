"""Two processes that meet in a collective again and again, until something happens to one.

Run as `crew.py SCENARIO FOLDER`; as Lightning does, the first process starts the other.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from varlit.cli.main import _complain
from varlit.cli.running import processes
from varlit.cli.running.ending import end_at_once
from varlit.data.loader import ResumableLoader
from varlit.data.order import EpochBatchSampler
from varlit.errors import UserError

STEPS = 8
SCENARIO, FOLDER = sys.argv[1], Path(sys.argv[2])
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
ALONE = "LOCAL_RANK" in os.environ and processes.LAUNCHER not in os.environ


class Numbers:
    num_read = 0

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index):
        self.num_read += 1
        if SCENARIO.startswith("raise") and self.num_read == STEPS:
            time.sleep(600)  # a read that hangs: torch's own watch does not come round
        return {"x": torch.from_numpy(index.ids)}


def happen(rank: int) -> None:
    """Do the damage of the scenario, in the middle of a run."""
    what, _, whom = SCENARIO.partition("-")
    if SCENARIO == "kill-0" and ALONE and rank:
        time.sleep(600)  # as on a GPU: no collective that would notice
    if whom != str(rank):
        return
    if what == "raise":
        raise ZeroDivisionError("a bug")
    if what == "refuse":
        raise UserError("31 of 40 images cannot be used")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "stop":
        raise SystemExit(0 if rank else 130)


def run() -> None:
    dist.init_process_group("gloo", rank=LOCAL_RANK, world_size=2)
    loader = ResumableLoader(Numbers(), EpochBatchSampler(1000, 4, LOCAL_RANK, 2), num_workers=1)
    batches = iter(loader)
    for step in range(STEPS):
        next(batches)
        dist.all_reduce(torch.ones(1))
        if step == STEPS // 2:
            happen(LOCAL_RANK)
        time.sleep(0.1)
    if SCENARIO == "slow-1" and LOCAL_RANK:
        time.sleep(3)
    print(f"rank {LOCAL_RANK} is done", flush=True)


def main() -> int:
    children: list[subprocess.Popen[bytes]] = []
    if SCENARIO.startswith("freeze"):
        processes.SILENCE_S = 2
    with processes.SharedFate(2, LOCAL_RANK, FOLDER, lambda: children):
        if not LOCAL_RANK and not ALONE:
            words = [sys.executable, *sys.argv]
            children.append(subprocess.Popen(words, env=os.environ | {"LOCAL_RANK": "1"}))
        if SCENARIO == "early-1" and LOCAL_RANK:
            raise UserError("too early")
        if SCENARIO == "orphan-0" and not LOCAL_RANK:
            time.sleep(4)  # the other one is now waiting to be met
            os.kill(os.getpid(), signal.SIGKILL)
        run()
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except UserError as error:
        code = _complain(str(error))
    end_at_once(code)
