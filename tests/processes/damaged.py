"""The command `varlit`, to which something happens: VARLIT_TEST_DAMAGE says what, and to whom."""

import os
import signal
import sys

from varlit.cli.main import command
from varlit.data import image_source
from varlit.training.tokenizer import TokenizerModule

WHAT, _, WHOM = os.environ["VARLIT_TEST_DAMAGE"].partition("-")
step, read = TokenizerModule.training_step, image_source.read_rgb


def damaged_step(module, batch, batch_idx):
    if batch_idx == 2 and str(module.trainer.global_rank) == WHOM:
        if WHAT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if WHAT == "interrupt":
            os.kill(os.getpid(), signal.SIGTERM)
    return step(module, batch, batch_idx)


def damaged_read(encoded, *rest):
    if WHAT == "worker" and encoded.name.endswith(WHOM):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(encoded, *rest)


TokenizerModule.training_step = damaged_step
image_source.read_rgb = damaged_read
if __name__ == "__main__":
    sys.exit(command())
