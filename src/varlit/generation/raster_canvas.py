"""What a raster scan draws upon: one token map, filled cell by cell."""

from __future__ import annotations

from torch import Tensor

from varlit.models.quantizer import MultiScaleQuantizer
from varlit.ops.pyramid import to_map


class RasterCanvas:
    """The single map of a plain VQGAN, row by row; what is not drawn yet is zero.

    Args:
        quantizer: Of one scale.
        batch_size: B.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, batch_size: int) -> None:
        self.quantizer, self.k = quantizer, 0
        weight, num_cells = quantizer.codebook.weight, quantizer.scales.num_tokens
        self._codes = weight.new_zeros(batch_size, num_cells, weight.shape[1])

    @property
    def features(self) -> Tensor:
        """The map so far, put through phi as the quantizer decodes a finished one."""
        latent = self.quantizer.empty(len(self._codes))
        return self.quantizer.accumulate(latent, to_map(self._codes, latent.shape[-1]), 0)

    def next_input(self) -> Tensor | None:
        """The code that was drawn last."""
        return None if self.k == 0 else self._codes[:, self.k - 1 : self.k]

    def put(self, tokens: Tensor, blend: Tensor | None = None) -> None:
        """Fill the next cell."""
        code = self.quantizer.codebook(tokens) if blend is None else blend
        self._codes[:, self.k : self.k + 1] = code
        self.k += 1
