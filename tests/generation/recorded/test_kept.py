import copy
import pickle
import warnings

import pytest
import torch

from varlit.generation.editing.edits import EditSettings, draw_edits
from varlit.generation.editing.known import known_scales
from varlit.generation.editing.outpainting import draw_around, place
from varlit.generation.packed import PackedSampler
from varlit.generation.recorded import kept
from varlit.generation.recorded.compiled import FastSampler
from varlit.generation.recorded.kept import KeptSampler
from varlit.generation.requests import Request, draw_request
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.models.packed_linear import can_pack

LABELS = torch.tensor([0, 1, 2, 1])
FREE = SamplingSettings(cfg_scale=1.0, top_k=0, top_p=0.0)


class Plain:
    """Records nothing: the function is its own replay."""

    def __init__(self):
        self.num_recorded = 0

    def record(self, run):
        self.num_recorded += 1
        run()
        return run


@pytest.fixture
def opened(monkeypatch):
    """What a GPU would open, as (sampler, number of images)."""
    made = []

    def open_fast(var, tokenizer, fast=None, *, dtype=None, num_images=None):
        made.append((FastSampler(var, tokenizer, dtype, "none", Plain()), num_images))
        return made[-1][0]

    monkeypatch.setattr(kept, "open_sampler", open_fast)
    return made


@pytest.fixture
def frozen(sampler):
    sampler.var.requires_grad_(False)
    return sampler


def request_of(sampler, **fields):
    return Request(sampler.tokenizer, **({"seed": 3, "generator": None, "batch_size": 2} | fields))


def in_half(sampler, **fields):
    return request_of(sampler, dtype=torch.bfloat16, **fields)


def test_calls_share_a_sampler_until_a_weight_changes(sampler, opened):
    request = in_half(sampler)
    expected = Sampler(sampler.var, sampler.tokenizer, torch.bfloat16)
    first = draw_request(sampler.var, request, LABELS, FREE).tokens
    assert torch.equal(draw_request(sampler.var, request, LABELS, FREE).tokens, first)
    assert [num_images for _, num_images in opened] == [4]
    assert opened[0][0].recorder.num_recorded == 1
    with torch.no_grad():
        sampler.var.head.weight.normal_()
    expected = Sampler(sampler.var, sampler.tokenizer, torch.bfloat16)
    found = draw_request(sampler.var, request, LABELS, FREE).tokens
    assert len(opened) == 2
    alone = draw_request(expected.var, request_of(sampler), LABELS, FREE).tokens
    assert torch.equal(found, alone)
    assert not torch.equal(found, first)


def test_the_precision_is_that_of_the_request_or_of_the_autocast_around_it(sampler, opened):
    with torch.autocast("cpu", torch.bfloat16):
        drawn = draw_request(sampler.var, request_of(sampler), LABELS, FREE)
    assert opened[0][0].dtype == torch.bfloat16
    same = draw_request(sampler.var, in_half(sampler), LABELS, FREE)
    assert torch.equal(drawn.tokens, same.tokens)


def test_on_a_cpu_packed_weights_are_kept_where_they_fit_twice(sampler, monkeypatch):
    def opened(kept):
        return kept.open(sampler.var, sampler.tokenizer, None, 9)

    monkeypatch.setattr("varlit.models.packed_linear.MIN_WIDTH", 1)
    if can_pack(sampler.var):
        kept = KeptSampler()
        assert isinstance(opened(kept), PackedSampler)
        assert opened(kept) is opened(kept)
    for name in ("recorded.kept", "packed"):
        monkeypatch.setattr(f"varlit.generation.{name}.can_pack", lambda var: False)
    assert type(opened(KeptSampler())) is Sampler


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (SamplingSettings(more_smooth=True), {}),
        (FREE, {"seed": None}),
        (FREE, {"seed": None, "generator": torch.Generator()}),
    ],
)
def test_what_no_graph_can_draw_is_drawn_without_a_word(sampler, opened, settings, fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_request(sampler.var, in_half(sampler, **fields), LABELS, settings)
    assert opened[0][0].recorder.num_recorded == 0


def test_edits_are_recorded_and_canvases_go_without_a_word(sampler, opened):
    images, mask = torch.rand(2, 3, 8, 8) * 2 - 1, torch.ones(8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request, edit = in_half(sampler), EditSettings(variants=2)
        draw_edits(sampler.var, request, images, mask, None, FREE, edit)
        assert [num_images for _, num_images in opened] == [4]
        assert opened[0][0].recorder.num_recorded == 1
        draw_around(sampler.var, request, place(images, (8, 16)), None, FREE, EditSettings())
    assert len(opened) == 1
    assert opened[0][0].recorder.num_recorded == 1


def test_weights_are_cast_once_for_all_batches_and_calls(frozen, casts):
    request = in_half(frozen)
    with casts(frozen.var) as seen:
        draw_request(frozen.var, request, LABELS, FREE)
        assert seen.most == 1
        draw_request(frozen.var, request, LABELS, FREE)
        assert seen.most == 1
    with torch.autocast("cpu", torch.bfloat16), casts(frozen.var) as seen:
        draw_request(frozen.var, request_of(frozen), LABELS, FREE)
        assert seen.most == 1


def test_the_windows_of_a_canvas_share_the_weights(frozen, casts):
    placed = place(torch.rand(1, 3, 8, 8) * 2 - 1, (8, 24), (0, 0))
    with casts(frozen.var) as seen:
        draw_around(frozen.var, in_half(frozen), placed, None, FREE, EditSettings())
    assert seen.most == 1


def test_a_copy_of_a_model_takes_nothing_along(sampler):
    own = KeptSampler()
    own.open(sampler.var, sampler.tokenizer, torch.bfloat16, 1)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert isinstance(other, KeptSampler)
        assert other._sampler is None


def test_a_model_in_train_mode_is_refused_in_any_precision(sampler):
    known = known_scales(torch.zeros(4, 21, dtype=torch.int64), sampler.var.scales, 1)
    sampler.var.train()
    for dtype in (None, torch.bfloat16):
        with pytest.raises(Exception, match="in train mode"):
            draw_request(sampler.var, request_of(sampler, dtype=dtype), LABELS, FREE, known)
