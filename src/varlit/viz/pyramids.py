"""Pictures of token pyramids: an image growing over the scales, and the maps themselves."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from varlit.errors import UserError
from varlit.ops.scales import Scales
from varlit.viz.grids import tile_grid, to_uint8
from varlit.viz.style import MARGIN_PX


def plain_name(scale_name: str) -> str:
    """The label `04x04`, which sorts, as people write it: `4 x 4`."""
    sides = scale_name.split("x")
    if len(sides) == 2 and all(side.isdigit() for side in sides):
        return f"{int(sides[0])} x {int(sides[1])}"
    return scale_name


def growing_strip(
    frames: Sequence[Tensor],
    names: Sequence[str],
    *,
    originals: Tensor | None = None,
    row_labels: Sequence[str] = (),
    title: str = "",
    caption: str = "",
    tile_px: int = 96,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """One row an image, one column a scale: what is seen after scales 1..k.

    Args:
        frames: K tensors (B, 3, H, W) in [-1, 1], decoded after each scale.
        names: K labels, such as `Scales.names`.
        originals: The true images (B, 3, H, W), shown as a last column.
        row_labels: Left of each row.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        tile_px: Size that small images are brought near to, by an integer factor.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.

    Raises:
        UserError: If there is not one name a frame.
    """
    if len(frames) != len(names):
        raise UserError(f"got {len(frames)} frames and {len(names)} scale names; give one each.")
    columns = [to_uint8(frame) for frame in frames]
    labels = [plain_name(name) for name in names]
    if originals is not None:
        columns.append(to_uint8(originals))
        labels.append("original")
    rows = [[column[i] for column in columns] for i in range(len(columns[0]))]
    return tile_grid(
        rows,
        row_labels=row_labels,
        column_labels=labels,
        title=title,
        caption=caption,
        tile_px=tile_px,
        margin_px=margin_px,
    )


def code_colours(codebook_size: int) -> np.ndarray:
    """A fixed colour for every code: equal codes look equal, numbers carry no order.

    Hues advance by the golden ratio, so that neighbouring numbers look unlike.

    Returns:
        Array (V, 3) uint8.
    """
    table = [
        colorsys.hls_to_rgb(code * 0.61803398875 % 1.0, 0.42 + 0.12 * (code % 3), 0.52)
        for code in range(codebook_size)
    ]
    return np.asarray(np.round(np.asarray(table) * 255), dtype=np.uint8)


def token_map_heat(
    tokens: Tensor,
    scales: Scales,
    *,
    images: Tensor | None = None,
    title: str = "",
    caption: str = "",
    tile_px: int = 96,
    margin_px: int = MARGIN_PX,
) -> np.ndarray:
    """The token maps of pyramids (B, L), one row a pyramid, one column a scale.

    Args:
        tokens: Integer pyramids (B, L).
        scales: Their schedule.
        images: What they decode to (B, 3, H, W), shown as a last column.
        title: Heading of the sheet.
        caption: Grey sentence under the heading.
        tile_px: Side of each map on paper; maps are cut into equal squares as far as that goes.
        margin_px: Margin around the sheet.

    Returns:
        Picture (H, W, 3) uint8.
    """
    colours = code_colours(int(tokens.max()) + 1)
    columns = [fit_square(colours[part.cpu().numpy()], tile_px) for part in scales.maps(tokens)]
    labels = [plain_name(name) for name in scales.names]
    if images is not None:
        columns.append(fit_square(to_uint8(images), tile_px))
        labels.append("decoded")
    rows = [[column[i] for column in columns] for i in range(len(tokens))]
    return tile_grid(
        rows,
        column_labels=labels,
        title=title,
        caption=caption,
        tile_px=tile_px,
        margin_px=margin_px,
    )


def fit_square(pictures: np.ndarray, side_px: int) -> np.ndarray:
    """Resize (B, h, w, 3) to a side by nearest neighbour, for sides that do not divide it."""
    height, width = pictures.shape[1:3]
    rows = np.arange(side_px) * height // side_px
    columns = np.arange(side_px) * width // side_px
    return pictures[:, rows][:, :, columns]
