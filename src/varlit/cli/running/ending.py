"""The end of a process that trained with others."""

import os
import sys

import torch.distributed as dist


def end_connected(code: int) -> None:
    """End this process here and now if gloo's threads are still in it.

    Called when all is written and every other exit handler has run. One of these threads that asks
    for the interpreter while it is being taken down is killed in the middle of C++, which aborts a
    training that has succeeded ("terminate called without an active exception"). Destroying the
    process group does not end them: DDP's reducer keeps them alive. Lightning parts from NCCL by
    itself.

    Args:
        code: What the process leaves with.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
