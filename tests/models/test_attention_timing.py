import pytest
import torch

from varlit.models.attention_timing import (
    AttentionShape,
    AttentionTiming,
    attention_table,
    measure_attention,
)
from varlit.ops.scales import Scales

SHAPE = AttentionShape(Scales((1, 2, 3)), batch_size=1, num_heads=1, head_dim=4)


def test_every_way_that_a_cpu_has_is_timed_fastest_first():
    timings = measure_attention(SHAPE, "cpu", rounds=2)
    assert {timing.backend for timing in timings} == {"dense", "segmented"}
    assert timings[0].both_s <= timings[1].both_s
    assert all(timing.forward_s > 0 for timing in timings)


def test_the_table_compares_with_dense():
    timings = AttentionTiming("segmented", 0.5, 1.0), AttentionTiming("dense", 1.0, 1.5)
    first, second = attention_table(timings).splitlines()
    assert first.startswith("segmented")
    assert "2.00x dense" in first
    assert "1.50x" in first
    assert second.startswith("dense")


def test_it_can_be_asked_for_in_inference_mode():
    with torch.inference_mode():
        assert measure_attention(SHAPE, torch.device("cpu"), rounds=1)


@pytest.mark.gpu
def test_a_gpu_tries_flex_too():
    timings = measure_attention(SHAPE, "cuda", rounds=1)
    assert {timing.backend for timing in timings} == {"dense", "segmented", "flex"}
