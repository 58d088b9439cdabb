import gc
import weakref

import pytest
import torch

from varlit.errors import UserError
from varlit.generation.canvas import ScaleCanvas
from varlit.generation.random_numbers import GivenUniforms
from varlit.generation.sampler import ImageSeeds, Sampler, SamplingSettings
from varlit.ops.filtering import draw as plain_draw
from varlit.ops.filtering import draw_at, filter_logits, guide

LABELS = torch.tensor([0, 1, 2, 1])
UNCONDITIONAL = 3
FREE = SamplingSettings(cfg_scale=0.0, top_k=0, top_p=0.0)
GREEDY = SamplingSettings(cfg_scale=0.0, top_k=1, top_p=0.0)
GUIDED = SamplingSettings(cfg_scale=2.0, top_k=12, top_p=0.9)


def draw(sampler, settings=GUIDED, labels=LABELS, seed=0, **others):
    return sampler.draw(labels, settings, torch.Generator().manual_seed(seed), **others)


def test_a_batch_is_tokens_their_image_and_its_growth(sampler):
    drawn = draw(sampler, with_frames=True)
    assert (drawn.tokens.shape, drawn.tokens.dtype) == ((4, 21), torch.int64)
    assert 0 <= drawn.tokens.min() <= drawn.tokens.max() < 24
    assert len(drawn.frames) == 3
    for k, frame in enumerate(drawn.frames):
        assert torch.equal(frame, sampler.tokenizer.decode_prefix(drawn.tokens, k + 1))
    assert torch.equal(drawn.images, sampler.tokenizer.decode(drawn.tokens))
    plain = draw(sampler)
    assert plain.frames == []
    assert torch.equal(plain.images, drawn.images), "looking does not change the picture"


@pytest.mark.parametrize("guidance", ["var", "constant"])
@torch.no_grad()
def test_greedy_tokens_are_the_likeliest_ones_of_the_full_pass(sampler, guidance):
    settings = SamplingSettings(cfg_scale=2.0, top_k=1, top_p=0.0, guidance=guidance)
    tokens = sampler.draw(LABELS, settings).tokens
    inputs = sampler.tokenizer.teacher_inputs(tokens)
    conditional = sampler.var(LABELS, inputs)
    unconditional = sampler.var(torch.full_like(LABELS, UNCONDITIONAL), inputs)
    # `var` rises from 0 to the given weight; `constant` 2 is a weight of 1 everywhere.
    rising = 2.0 * sampler.var.scales.levels() / 2
    weight = rising if guidance == "var" else torch.ones(21)
    logits = guide(conditional, unconditional, weight[None, :, None])
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    assert (chosen >= logits.amax(-1) - 1e-3).all()
    assert (tokens != conditional.argmax(-1)).any(), "guidance changes something"


def test_a_generator_gives_the_same_batch_again_and_another_seed_another(sampler):
    assert torch.equal(draw(sampler, seed=5).tokens, draw(sampler, seed=5).tokens)
    assert not torch.equal(draw(sampler, seed=5).tokens, draw(sampler, seed=6).tokens)


def test_without_a_generator_the_global_stream_is_used(sampler):
    torch.manual_seed(3)
    first = sampler.draw(LABELS, FREE).tokens
    torch.manual_seed(3)
    assert torch.equal(sampler.draw(LABELS, FREE).tokens, first)


def test_seeds_of_images_leave_the_global_stream_alone(sampler):
    before = torch.get_rng_state()
    sampler.draw(LABELS, FREE, ImageSeeds(range(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_is_a_function_of_its_label_and_seed_not_of_its_batch(sampler):
    whole = sampler.draw(LABELS, GUIDED, ImageSeeds([7, 8, 9, 10]))
    for i, seed in enumerate([7, 8, 9, 10]):
        alone = sampler.draw(LABELS[i : i + 1], GUIDED, ImageSeeds([seed]))
        assert torch.equal(alone.tokens, whole.tokens[i : i + 1])
    turned = sampler.draw(LABELS.flip(0), GUIDED, ImageSeeds([10, 9, 8, 7]))
    assert torch.equal(turned.tokens.flip(0), whole.tokens)
    assert not torch.equal(whole.tokens[1], whole.tokens[3]), "one label, two seeds"


@torch.no_grad()
def test_no_guidance_runs_no_second_row(sampler, monkeypatch):
    rows, begin = [], sampler.var.begin
    monkeypatch.setattr(
        sampler.var, "begin", lambda labels: (rows.append(len(labels)), begin(labels))[1]
    )
    draw(sampler, FREE)
    draw(sampler, SamplingSettings(cfg_scale=1.0, top_k=0, top_p=0.0, guidance="constant"))
    draw(sampler, GUIDED)
    assert rows == [4, 4, 8]


def test_the_two_words_for_no_guidance_mean_the_same(sampler):
    constant = SamplingSettings(cfg_scale=1.0, top_k=0, top_p=0.0, guidance="constant")
    assert torch.equal(draw(sampler, constant).tokens, draw(sampler, FREE).tokens)


def test_guiding_the_unconditional_class_changes_nothing(sampler):
    labels = torch.full((4,), UNCONDITIONAL)
    guided = SamplingSettings(cfg_scale=4.0, top_k=1, top_p=0.0)
    assert torch.equal(draw(sampler, guided, labels).tokens, draw(sampler, GREEDY, labels).tokens)


@torch.no_grad()
def test_only_codes_that_survive_the_filter_are_drawn(sampler):
    settings = SamplingSettings(cfg_scale=0.0, top_k=3, top_p=0.0)
    tokens = draw(sampler, settings, LABELS.repeat(20)).tokens
    logits = sampler.var(LABELS.repeat(20), sampler.tokenizer.teacher_inputs(tokens))
    rank = (logits > logits.gather(-1, tokens[..., None])).sum(-1)
    assert set(rank.flatten().tolist()) == {0, 1, 2}


@torch.no_grad()
def test_tokens_of_the_first_scale_follow_the_transformers_distribution(sampler):
    count = 8000
    state = sampler.var.begin(torch.tensor([1]))
    probability = sampler.var.advance(state)[0, 0].softmax(-1)
    for random in (torch.Generator().manual_seed(0), ImageSeeds(range(count))):
        first = next(sampler.steps(torch.ones(count, dtype=torch.long), FREE, random))
        share = torch.bincount(first.tokens[:, 0], minlength=24) / count
        torch.testing.assert_close(share, probability, atol=0.02, rtol=0)


def test_stopping_half_way_leaves_no_trace(sampler):
    expected = draw(sampler).tokens
    steps = sampler.steps(LABELS, GUIDED, torch.Generator().manual_seed(0))
    first = next(steps)
    assert torch.is_grad_enabled(), "not switched off for whoever watches"
    assert not first.f_hat.requires_grad
    steps.close()
    assert torch.equal(first.tokens, expected[:, :1])
    assert torch.equal(draw(sampler).tokens, expected)
    inputs = torch.zeros(4, 20, 8)
    assert sampler.var(LABELS, inputs).requires_grad, "training goes on"


def test_scales_arrive_coarse_to_fine_with_the_sum_so_far(sampler):
    steps = list(sampler.steps(LABELS, GUIDED, torch.Generator().manual_seed(0)))
    assert [step.k for step in steps] == [0, 1, 2]
    tokens = sampler.var.scales.merge([step.tokens for step in steps])
    for step in steps:
        assert torch.equal(step.f_hat, sampler.tokenizer.quantizer.decode(tokens, step.k + 1))


@torch.no_grad()
def test_under_bf16_the_latent_map_is_still_what_its_tokens_decode_to(sampler):
    # Training draws its pictures under the trainer's autocast.
    with torch.autocast("cpu", torch.bfloat16):
        steps = list(sampler.steps(LABELS, GUIDED, ImageSeeds(range(4))))
    tokens = sampler.var.scales.merge([step.tokens for step in steps])
    assert torch.equal(steps[-1].f_hat, sampler.tokenizer.quantizer.decode(tokens))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": "strong"}, r"one of \('var', 'constant'\); got 'strong'"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 1.5}, r"top_p must lie in 0\.\.1"),
        ({"top_p": -0.1}, r"top_p must lie in 0\.\.1"),
        ({"top_k": 2.5}, "a whole number of codes, such as 900; got 2.5"),
        ({"top_p": float("nan")}, r"top_p must lie in 0\.\.1"),
        ({"top_p": "0.9"}, r"top_p must lie in 0\.\.1"),
        ({"cfg_scale": None}, "cfg_scale must be finite"),
        ({"cfg_scale": -1.0}, r"must be finite, 0 or more \(0 = no guidance\); got -1\.0"),
        ({"cfg_scale": -1.0, "guidance": "constant"}, r"\(1 = no guidance\)"),
        ({"cfg_scale": float("nan")}, "must be finite"),
        ({"cfg_scale": float("inf")}, "must be finite"),
        ({"draw": "quick"}, r"draw must be one of \('exact', 'sorted'\); got 'quick'"),
        ({"draw": "sorted", "more_smooth": True}, "more_smooth blends all codes.*take exact"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        SamplingSettings(**fields)


def test_an_unknown_class_is_refused(sampler):
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.2"):
        draw(sampler, labels=torch.tensor([4]))


@pytest.mark.parametrize("random", [ImageSeeds([1, 2, 3, 4]), None])
def test_smooth_pictures_keep_the_drawn_tokens_of_the_first_scale_and_blend_the_codes(
    sampler, random
):
    torch.manual_seed(0)
    smooth = SamplingSettings(cfg_scale=0.0, top_k=0, top_p=0.0, more_smooth=True)
    step = next(sampler.steps(LABELS, smooth, random))
    expected = sampler.tokenizer.quantizer.decode(
        torch.nn.functional.pad(step.tokens, (0, 20)), num_scales=1
    )
    assert not torch.allclose(step.f_hat, expected)


def test_a_greedy_picture_has_nothing_to_blend(sampler):
    smooth = SamplingSettings(cfg_scale=2.0, top_k=1, top_p=0.0, more_smooth=True)
    plain = SamplingSettings(cfg_scale=2.0, top_k=1, top_p=0.0)
    found, expected = draw(sampler, smooth), draw(sampler, plain)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.images, expected.images)


@torch.no_grad()
@pytest.mark.parametrize("is_seeded", [True, False])
@pytest.mark.parametrize(("top_k", "top_p"), [(12, 0.9), (0, 0.7), (5, 0.0), (0, 0.0), (1, 0.5)])
def test_the_loop_draws_the_tokens_of_the_plain_definition(sampler, is_seeded, top_k, top_p):
    settings = SamplingSettings(2.0, top_k, top_p)
    scales, quantizer = sampler.var.scales, sampler.tokenizer.quantizer
    seeds, stream = ImageSeeds(range(4)), torch.Generator().manual_seed(0)
    # Written out: two passes, no cache, logits of everything so far at each scale.
    drawn = torch.zeros(4, scales.num_tokens, dtype=torch.int64)
    for k in range(3):
        part, inputs = scales.token_slice(k), quantizer.teacher_inputs(drawn)
        conditional = sampler.var(LABELS, inputs)[:, part]
        unconditional = sampler.var(torch.full_like(LABELS, UNCONDITIONAL), inputs)[:, part]
        logits = filter_logits(guide(conditional, unconditional, 2.0 * k / 2), top_k, top_p)
        uniform = seeds.uniform(part, torch.device("cpu"))
        drawn[:, part] = draw_at(logits, uniform) if is_seeded else plain_draw(logits, stream)
    random = ImageSeeds(range(4)) if is_seeded else torch.Generator().manual_seed(0)
    assert torch.equal(sampler.draw(LABELS, settings, random).tokens, drawn)


def test_numbers_that_are_given_draw_the_images_of_their_seeds(sampler):
    numbers = torch.stack([torch.rand(21, generator=g) for g in ImageSeeds(range(4)).generators])
    found = sampler.draw(LABELS, GUIDED, GivenUniforms(numbers))
    assert torch.equal(found.tokens, sampler.draw(LABELS, GUIDED, ImageSeeds(range(4))).tokens)


@pytest.mark.parametrize("make", [lambda: ImageSeeds(range(6000)), torch.Generator, lambda: None])
def test_sorted_drawing_follows_the_same_distribution(sampler, make):
    labels, numbers = torch.ones(6000, dtype=torch.long), make()
    shares = []
    for kind in ("exact", "sorted"):
        settings = SamplingSettings(2.0, 12, 0.9, draw=kind)
        first = next(sampler.steps(labels, settings, numbers))
        shares.append(torch.bincount(first.tokens[:, 0], minlength=24) / 6000)
    torch.testing.assert_close(*shares, atol=0.03, rtol=0)
    assert torch.equal(shares[0] > 0, shares[1] > 0)


def test_a_sorted_image_too_is_a_function_of_its_label_and_seed(sampler):
    settings = SamplingSettings(2.0, 12, 0.9, draw="sorted")
    whole = sampler.draw(LABELS, settings, ImageSeeds([7, 8, 9, 10]))
    for i, seed in enumerate([7, 8, 9, 10]):
        alone = sampler.draw(LABELS[i : i + 1], settings, ImageSeeds([seed]))
        assert torch.equal(alone.tokens, whole.tokens[i : i + 1])


@pytest.mark.parametrize("settings", [GUIDED, FREE])
def test_a_table_of_classes_changes_nothing(sampler, settings):
    labels = torch.tensor([0, 1, 2, UNCONDITIONAL])
    with_table = Sampler(sampler.var, sampler.tokenizer, class_table=True)
    plain = [draw(sampler, settings, labels, seed).tokens for seed in (1, 2)]
    found = [draw(with_table, settings, labels, seed).tokens for seed in (1, 2)]
    assert all(map(torch.equal, plain, found))
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.2"):
        draw(with_table, labels=torch.tensor([4]))


def test_the_table_is_read_once(sampler, monkeypatch):
    reads, read = [], sampler.var.read_classes
    monkeypatch.setattr(
        sampler.var, "read_classes", lambda *args: (reads.append(args), read(*args))[1]
    )
    with_table = Sampler(sampler.var, sampler.tokenizer, class_table=True)
    for seed in range(3):
        draw(with_table, seed=seed)
    assert reads == [()]


def test_weights_in_another_type_are_a_copy_of_the_samplers_own(sampler):
    before = {name: value.clone() for name, value in sampler.var.state_dict().items()}
    half = Sampler(sampler.var, sampler.tokenizer, dtype=torch.bfloat16)
    tokens = draw(half).tokens
    assert half.var.head.weight.dtype == torch.bfloat16
    state = half.var.begin(LABELS)
    assert {cache.keys.dtype for cache in state.caches} == {torch.bfloat16}
    for name, value in sampler.var.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert half.tokenizer is sampler.tokenizer
    assert torch.equal(draw(half).images, sampler.tokenizer.decode(tokens)), "decoded in fp32"


def test_half_precision_draws_nearly_the_same_distribution(sampler):
    half = Sampler(sampler.var, sampler.tokenizer, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = [s.var.advance(s.var.begin(LABELS)).float() for s in (sampler, half)]
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].std()
    assert not torch.equal(*logits), "cast indeed"


def test_an_error_on_the_way_leaves_no_trace(sampler, monkeypatch):
    expected, put = draw(sampler).tokens, ScaleCanvas.put

    def failing(canvas, tokens, blend=None):
        if canvas.k == 1:
            raise ZeroDivisionError
        put(canvas, tokens, blend)

    with monkeypatch.context() as patch:
        patch.setattr(ScaleCanvas, "put", failing)
        with pytest.raises(ZeroDivisionError):
            draw(sampler)
    assert torch.is_grad_enabled()
    assert torch.equal(draw(sampler).tokens, expected)


def test_a_batch_that_is_left_half_way_is_freed(sampler):
    steps = sampler.steps(LABELS, GUIDED, ImageSeeds(range(4)))
    kept = weakref.ref(next(steps).f_hat)
    steps.close()
    del steps
    gc.collect()
    assert kept() is None


def test_labels_are_checked_before_they_reach_a_device(sampler, monkeypatch):
    # On a GPU a label out of range would end the process; `meta` would answer with nonsense.
    monkeypatch.setattr(type(sampler.var), "device", torch.device("meta"))
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.2"):
        next(sampler.steps(torch.tensor([0, 7]), SamplingSettings()))
