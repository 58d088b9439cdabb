import torch

from varlit.generation.canvas import ScaleCanvas, open_canvas


def test_a_canvas_walks_the_scales_as_teacher_forcing_does(sampler):
    quantizer, scales = sampler.tokenizer.quantizer, sampler.var.scales
    tokens = torch.randint(24, (3, scales.num_tokens))
    canvas = open_canvas(sampler.var, sampler.tokenizer, 3)
    assert isinstance(canvas, ScaleCanvas)
    assert canvas.next_input() is None
    inputs = []
    for k, part in enumerate(scales.split(tokens)):
        canvas.put(part)
        assert torch.equal(canvas.features, quantizer.decode(tokens, k + 1))
        if k + 1 < scales.num_scales:
            inputs.append(canvas.next_input())
    torch.testing.assert_close(torch.cat(inputs, dim=1), quantizer.teacher_inputs(tokens))


def test_codes_in_place_of_tokens_add_up_alike(sampler):
    quantizer, scales = sampler.tokenizer.quantizer, sampler.var.scales
    tokens = torch.randint(24, (2, scales.num_tokens))
    by_token, by_code = ScaleCanvas(quantizer, 2), ScaleCanvas(quantizer, 2)
    for part in scales.split(tokens):
        by_token.put(part)
        by_code.put(torch.zeros_like(part), quantizer.codebook(part))
    assert torch.equal(by_token.features, by_code.features)


def test_what_was_seen_of_a_growing_picture_stays_as_it_was(sampler):
    canvas = ScaleCanvas(sampler.tokenizer.quantizer, 1)
    canvas.put(torch.tensor([[3]]))
    seen, copy = canvas.features, canvas.features.clone()
    canvas.put(torch.tensor([[1, 2, 3, 4]]))
    assert torch.equal(seen, copy)
