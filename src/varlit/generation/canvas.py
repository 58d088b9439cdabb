"""What a sample is drawn upon: it takes tokens and says what the transformer sees next."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from varlit.generation.raster_canvas import RasterCanvas
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.pyramid import to_map


class Canvas(Protocol):
    """One batch of pictures in the making; `put` moves it one step on."""

    @property
    def features(self) -> Tensor:
        """What the decoder would see now.  # (B, C, h, w)"""
        ...

    def next_input(self) -> Tensor | None:
        """What the transformer sees at this step, (B, l_k, C); None at the first."""
        ...

    def put(self, tokens: Tensor, blend: Tensor | None = None) -> None:
        """Add the tokens of this step, (B, l_k).

        Args:
            tokens: What was drawn.
            blend: Codes to lay down in place of the tokens' own, (B, l_k, C).
        """
        ...


class ScaleCanvas:
    """The latent map as the sum of token maps, coarse to fine (VAR Algorithm 2).

    Args:
        quantizer: Whose tokens are drawn.
        batch_size: B.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, batch_size: int) -> None:
        self.quantizer, self.k = quantizer, 0
        self._f_hat = quantizer.empty(batch_size)

    @property
    def features(self) -> Tensor:
        """The sum of all scales so far; of their blends, where blends were put."""
        return self._f_hat

    def next_input(self) -> Tensor | None:
        """The sum so far at the side of the next scale."""
        return None if self.k == 0 else self.quantizer.next_input(self._f_hat, self.k - 1)

    def put(self, tokens: Tensor, blend: Tensor | None = None) -> None:
        """Add the token map of the next scale."""
        if blend is None:
            embedding = self.quantizer.embed(tokens, self.k)
        else:
            embedding = to_map(blend, self.quantizer.scales.sides[self.k])
        # A new tensor: whoever watches the picture grow keeps the old ones.
        self._f_hat = self.quantizer.accumulate(self._f_hat, embedding, self.k)
        self.k += 1


def open_canvas(var: VAR, tokenizer: VQVAE, batch_size: int) -> Canvas:
    """The canvas that fits the order in which a transformer predicts."""
    if var.config.order == "raster":
        return RasterCanvas(tokenizer.quantizer, batch_size)
    return ScaleCanvas(tokenizer.quantizer, batch_size)
