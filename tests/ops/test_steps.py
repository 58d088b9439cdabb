import pytest
import torch

from varlit.errors import UserError
from varlit.ops.raster import RasterScan
from varlit.ops.scales import Scales

each_order = pytest.mark.parametrize(
    "steps", [Scales((1, 2, 3)), Scales((5,)), RasterScan(4), RasterScan(1)], ids=str
)


@each_order
def test_steps_cut_the_tokens_without_gap_or_overlap(steps):
    places = [
        i for k in range(steps.num_steps) for i in range(steps.num_tokens)[steps.token_slice(k)]
    ]
    assert places == list(range(steps.num_tokens))
    assert steps.num_steps == len(steps.lengths) == len(steps.offsets)
    assert sum(steps.lengths) == steps.num_tokens
    assert steps.levels().tolist() == [k for k, n in enumerate(steps.lengths) for _ in range(n)]


@each_order
def test_a_step_sees_itself_and_all_before_it(steps):
    mask = steps.block_causal_mask()
    for k in range(steps.num_steps):
        part = steps.token_slice(k)
        assert mask[part, : part.stop].all()
        assert not mask[part, part.stop :].any()


@each_order
def test_the_last_frame_is_the_finished_picture(steps):
    assert steps.frame_steps[-1] == steps.num_steps - 1
    assert list(steps.frame_steps) == sorted(set(steps.frame_steps))
    assert len(set(steps.frame_names)) == len(steps.frame_steps)


def test_next_scale_prediction_makes_a_step_of_a_map():
    scales = Scales((1, 2, 3))
    assert scales.num_steps == scales.num_scales == 3
    assert scales.frame_steps == (0, 1, 2)
    assert scales.frame_names == scales.names


def test_raster_scan_makes_a_step_of_a_token_and_a_frame_of_a_row():
    scan = RasterScan(4)
    assert (scan.num_steps, scan.num_tokens) == (16, 16)
    assert scan.lengths == (1,) * 16
    assert scan.frame_steps == (3, 7, 11, 15)
    assert scan.frame_names == ("row 01", "row 02", "row 03", "row 04")
    assert torch.equal(scan.block_causal_mask(), torch.ones(16, 16).tril().bool())


def test_a_scan_of_nothing_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        RasterScan(0)
