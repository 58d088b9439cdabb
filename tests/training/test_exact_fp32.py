import signal

import pytest
import torch
from lightning.pytorch import Callback


def precision():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


class Look(Callback):
    def __init__(self, fails):
        self.fails = fails

    def on_train_batch_end(self, *_):
        self.seen = precision()
        if self.fails:
            raise self.fails


@pytest.fixture
def as_before():
    """The process as it was; Lightning leaves it deaf to Ctrl-C after one."""
    matmul, interrupt = torch.backends.cuda.matmul, signal.getsignal(signal.SIGINT)
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield precision()
    matmul.fp32_precision = before
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize("ends_with", [None, ZeroDivisionError, KeyboardInterrupt])
def test_tf32_is_off_while_it_learns_and_as_before_however_it_ends(
    ends_with, make_tokenizer_module, make_trainer, digits, as_before
):
    look = Look(ends_with)
    try:
        make_trainer(look, max_steps=1).fit(make_tokenizer_module(), digits)
    except (ZeroDivisionError, SystemExit):  # Lightning turns Ctrl-C into the latter
        assert ends_with is not None
    assert look.seen == ("ieee", "ieee")
    assert precision() == as_before
