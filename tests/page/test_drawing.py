"""The page's draughtsman without its server: precision, and edits as everywhere else."""

import json

import torch

from varlit.generation.editing.edits import EditSettings, draw_edits
from varlit.generation.requests import Request
from varlit.page.requests import parse_request
from varlit.viz.grids import to_uint8


def asked(studio, fields):
    return parse_request(json.dumps(fields).encode(), studio.bounds)


def drawn_by(studio, request):
    return [event for event in studio.draw(request, lambda: False) if event["event"] == "frame"]


def test_in_half_precision_weights_are_cast_once(make_studio, plain, casts):
    shape = (96, 32)  # queries, keys and values of a block
    with casts(shape=shape) as seen:
        studio = make_studio(is_bf16=True)
        assert seen.most == 1
        for _ in range(2):
            drawn_by(studio, asked(studio, plain))
    assert seen.most == 1


def test_an_edit_is_the_edit_of_every_other_caller(make_studio, plain, edit, pixels):
    studio = make_studio()
    for keep_rest in (True, False):
        request = asked(studio, plain | {"edit": edit | {"keep_rest": keep_rest}})
        last = drawn_by(studio, request)[-1]["images"]
        expected = draw_edits(
            studio.sampler.var,
            Request(studio.sampler.tokenizer, request.seed, None, 16),
            request.edit.image.unsqueeze(0),
            request.edit.mask,
            request.label,
            request.settings,
            EditSettings(variants=2, keep_known_pixels=keep_rest),
        )
        for text, picture in zip(last, to_uint8(expected.images), strict=True):
            assert (pixels(text) == torch.as_tensor(picture).numpy()).all()
