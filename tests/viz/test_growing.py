from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from varlit.errors import UserError
from varlit.viz.growing import (
    FRAME_MS,
    LAST_FRAME_MS,
    MARGIN_PX,
    MAX_COLUMNS,
    MAX_ROWS,
    MAX_SIDE_PX,
    PATTERN,
    TILE_PX,
    growing_pictures,
    save_gif,
    tile_side,
)
from varlit.viz.style import ACCENT, HAIRLINE, PAPER

NAMES = ["01x01", "02x02", "10x10"]


def frames(num_images: int = 2, side: int = 16, num_frames: int = 3) -> list[torch.Tensor]:
    """The left half of an image changes from frame to frame, the right half stays."""
    drawn = torch.Generator().manual_seed(0)
    first = torch.rand(num_images, 3, side, side, generator=drawn) * 2 - 1
    found = []
    for _ in range(num_frames):
        frame = first.clone()
        half = frame[..., : side // 2]
        half.copy_(torch.rand(half.shape, generator=drawn) * 2 - 1)
        found.append(frame)
    return found


def opened(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]


def track(picture: np.ndarray) -> list[tuple[int, int, int]]:
    """The colours of the bar under a picture, from left to right."""
    row = picture[::-1][: MARGIN_PX + 12]
    is_bar = (row == ACCENT).all(-1) | (row == HAIRLINE).all(-1)
    line = row[is_bar.sum(1).argmax()]
    colours = [tuple(int(c) for c in pixel) for pixel in line]
    kept = [c for c in colours if c in (ACCENT, HAIRLINE)]
    return [colour for colour, _ in groupby(kept)]


def test_there_is_a_frame_a_scale_and_the_last_one_rests(tmp_path: Path):
    path = save_gif(growing_pictures(frames(1), NAMES), tmp_path / "deep" / "g.gif")
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0, "for ever"
        shown = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert shown == [FRAME_MS, FRAME_MS, LAST_FRAME_MS]
    assert [p.name for p in path.parent.iterdir()] == ["g.gif"], "nothing unfinished is left"


def test_what_does_not_change_between_frames_does_not_flicker(tmp_path: Path):
    pictures = growing_pictures(frames(1), NAMES)
    shown = opened(save_gif(pictures, tmp_path / "g.gif"))
    for (before, after), (first, second) in zip(pairwise(pictures), pairwise(shown), strict=True):
        same = (before == after).all(-1)
        assert 0.4 < same.mean() < 1, "the test would prove nothing"
        assert (first[same] == second[same]).all()


def test_a_colour_becomes_the_same_colour_wherever_it_is(tmp_path: Path):
    pictures = growing_pictures(frames(2), NAMES, columns=2)
    shown = opened(save_gif(pictures, tmp_path / "g.gif"))
    number = np.array([1 << 16, 1 << 8, 1])
    wanted, got = np.stack(pictures) @ number, np.stack(shown) @ number
    assert len(np.unique(wanted)) == len(np.unique(wanted << 24 | got))
    assert len(np.unique(got)) <= 256


def test_a_gif_looks_like_its_pictures_and_paper_stays_paper(tmp_path: Path):
    smooth = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32) * torch.tensor([1, 0.5, -0.7]).view(
        3, 1, 1
    )
    pictures = growing_pictures([smooth * share for share in (0.2, 0.6, 1)], NAMES)
    shown = opened(save_gif(pictures, tmp_path / "g.gif"))
    gap = np.abs(np.stack(pictures).astype(int) - np.stack(shown))
    assert gap.mean() < 3
    paper = np.stack(pictures) == PAPER
    assert (np.stack(shown)[paper.all(-1)] == PAPER).all()


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path):
    one = save_gif(growing_pictures(frames(1), NAMES), tmp_path / "one.gif").read_bytes()
    two = save_gif(growing_pictures(frames(1), NAMES), tmp_path / "two.gif").read_bytes()
    assert one == two


def test_the_bar_fills_with_the_scales():
    pictures = growing_pictures(frames(), NAMES)
    assert [track(p) for p in pictures] == [[ACCENT, HAIRLINE], [ACCENT, HAIRLINE], [ACCENT]]
    filled = [(p == ACCENT).all(-1).sum() for p in pictures]
    assert filled[0] < filled[1] < filled[2]


def test_the_pattern_takes_nothing_away_and_hides_steps():
    assert abs(PATTERN.mean()) < 1e-9
    assert len(np.unique(PATTERN)) == PATTERN.size
    flat = torch.full((1, 3, 16, 16), 0.2)
    tile = growing_pictures([flat], ["04x04"])[0][MARGIN_PX:][:TILE_PX, MARGIN_PX:][:, :TILE_PX]
    assert abs(tile.mean() - 1.2 * 127.5) < 0.5
    assert np.ptp(tile) > 0


@pytest.mark.parametrize(("num_images", "columns"), [(1, 1), (30, 3), (200, 20), (300, 1)])
@pytest.mark.parametrize("image_px", [32, 300])
def test_no_grid_is_larger_than_told(num_images: int, columns: int, image_px: int):
    grown = growing_pictures(
        [torch.zeros(num_images, 3, image_px, image_px)], ["01x01"], columns=columns
    )
    height, width, _ = grown[0].shape
    assert max(height, width) <= MAX_SIDE_PX + 2 * MARGIN_PX + 40


def test_small_images_are_enlarged_and_large_grids_cut():
    assert tile_side(32, 1, 1) == TILE_PX
    assert tile_side(256, 1, 2) == 256
    assert tile_side(256, 10, 10) < 72
    many = torch.zeros(12 * 15, 3, 8, 8)
    few = torch.zeros(MAX_ROWS * MAX_COLUMNS, 3, 8, 8)
    cut = growing_pictures([many], ["01x01"], columns=15)
    whole = growing_pictures([few], ["01x01"], columns=MAX_COLUMNS)
    assert (cut[0] == whole[0]).all()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="3 frames and 2 scale names"):
        growing_pictures(frames(), NAMES[:2])
    with pytest.raises(UserError, match="at least one image"):
        growing_pictures([torch.zeros(0, 3, 8, 8)], ["01x01"])
    with pytest.raises(UserError, match="got 2 sizes"):
        save_gif([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], tmp_path / "g.gif")
    with pytest.raises(UserError, match="got 0 sizes"):
        save_gif([], tmp_path / "g.gif")
