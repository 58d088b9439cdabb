"""TF32 off while a fit lasts, however it ends."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from varlit.ops.quantize import allow_tf32_again, forbid_tf32


class ExactFp32(Callback):
    """What is not bf16 means fp32, in the backward pass too.

    A callback, because Lightning tells no module that its fit has failed; whoever mends it in the
    same process, as in a notebook, gets the switches back as they were.
    """

    def __init__(self) -> None:
        self._is_on = False

    def on_fit_start(self, *_: Any) -> None:
        """Forbid TF32."""
        forbid_tf32()
        self._is_on = True

    def on_fit_end(self, *_: Any) -> None:
        """Give TF32 back."""
        if self._is_on:
            self._is_on = False
            allow_tf32_again()

    def on_exception(self, *_: Any) -> None:
        """Give TF32 back."""
        self.on_fit_end()
