"""The command `varlit`, to which something happens: VARLIT_TEST_DAMAGE says what, and to whom."""

import os
import signal
import sys

from varlit.cli import main

WHAT, _, WHOM = os.environ["VARLIT_TEST_DAMAGE"].partition("-")


def damage() -> None:
    """Put the damage in place; imported as late as the command imports it."""
    from varlit.data import image_source
    from varlit.training.tokenizer import TokenizerModule

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


def damaged_main(run=main.main):
    damage()
    return run()


if __name__ == "__main__":
    main.main = damaged_main
    sys.exit(main.command())
