"""Pictures of a run, drawn with Pillow: grids, growing pyramids, plots, posters.

Everything takes and gives uint8 arrays (H, W, 3); tensors are images (N, 3, H, W) in [-1, 1].
"""

from varlit.viz.grids import beside, image_grid, save_png, side_by_side, tile_grid, to_uint8
from varlit.viz.growing import growing_pictures, save_gif
from varlit.viz.masks import edit_sheet, hatched
from varlit.viz.plots import lines, usage_bars
from varlit.viz.poster import Section, poster
from varlit.viz.pyramids import growing_strip, token_map_heat

__all__ = [
    "Section",
    "beside",
    "edit_sheet",
    "growing_pictures",
    "growing_strip",
    "hatched",
    "image_grid",
    "lines",
    "poster",
    "save_gif",
    "save_png",
    "side_by_side",
    "tile_grid",
    "to_uint8",
    "token_map_heat",
    "usage_bars",
]
