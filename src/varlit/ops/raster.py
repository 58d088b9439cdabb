"""Raster scan, the order of GPT and of VQGAN's transformer: row by row, one token a step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from varlit.errors import UserError
from varlit.ops.steps import Steps


@dataclass(frozen=True)
class RasterScan(Steps):
    """The cells of one square token map, each a step of its own.

    Raises:
        UserError: If the side is not positive.

    >>> scan = RasterScan(4)
    >>> scan.num_steps, scan.frame_steps
    (16, (3, 7, 11, 15))
    """

    side: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"a raster scan needs a side of at least 1; got {self.side}")

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """One token a step."""
        return (1,) * self.side**2

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of each step's token."""
        return tuple(range(self.side**2))

    @property
    def frame_steps(self) -> tuple[int, ...]:
        """A picture after every row: one after every token would be 256 of them at 256 px."""
        return tuple(range(self.side - 1, self.side**2, self.side))

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Labels that sort in reading order, such as `row 04`."""
        return tuple(f"row {row:02d}" for row in range(1, self.side + 1))
