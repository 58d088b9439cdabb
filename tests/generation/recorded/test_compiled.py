import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch

from varlit.errors import UserError
from varlit.generation.editing.known import KnownTokens, known_outside
from varlit.generation.random_numbers import GivenUniforms
from varlit.generation.recorded import compiled
from varlit.generation.recorded.compiled import FastSampler, open_sampler
from varlit.generation.sampler import ImageSeeds, SamplingSettings
from varlit.models.decoder_speed import DecoderChoice, DecoderTiming

LABELS = torch.tensor([0, 1, 2, 1])
SEEDS = [7, 8, 9, 10]
GUIDED = SamplingSettings(cfg_scale=2.0, top_k=12, top_p=0.9)
FREE = SamplingSettings(cfg_scale=0.0, top_k=0, top_p=0.0)
SMOOTH = SamplingSettings(more_smooth=True)


class SameMemory:
    """Replays as a CUDA graph does: the same reads, and results always in the same place."""

    def __init__(self):
        self.num_recorded, self.num_replayed, self.fails_with = 0, 0, []

    def record(self, run):
        if self.fails_with:
            raise self.fails_with.pop(0)
        self.num_recorded += 1
        out = run()

        def replay():
            self.num_replayed += 1
            again = run()
            places = out.images, out.tokens, *out.frames
            for place, new in zip(places, (again.images, again.tokens, *again.frames), strict=True):
                place.copy_(new)
            return out

        return replay


@pytest.fixture
def recorder():
    return SameMemory()


@pytest.fixture
def fast(sampler, recorder):
    return FastSampler(sampler.var, sampler.tokenizer, compile_mode="none", recorder=recorder)


def seeded(sampler, labels=LABELS, settings=GUIDED, seeds=SEEDS, **others):
    return sampler.draw(labels, settings, ImageSeeds(seeds[: len(labels)]), **others)


def equal(a, b):
    pairs = zip([a.images, *a.frames], [b.images, *b.frames], strict=True)
    return torch.equal(a.tokens, b.tokens) and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("settings", [GUIDED, FREE])
@pytest.mark.parametrize("with_frames", [False, True])
def test_a_replay_draws_what_the_plain_sampler_draws(
    sampler, fast, recorder, settings, with_frames
):
    others = {"settings": settings, "with_frames": with_frames}
    expected = seeded(sampler, **others)
    assert equal(seeded(fast, **others), expected)
    assert equal(seeded(fast, **others), expected)
    turned = {"labels": LABELS.flip(0), "seeds": SEEDS[::-1], **others}
    assert equal(seeded(fast, **turned), seeded(sampler, **turned))
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 3)


def test_what_was_drawn_stays_when_the_next_batch_is_drawn(fast):
    first = seeded(fast, with_frames=True)
    before = first.images.clone(), first.tokens.clone(), first.frames[0].clone()
    seeded(fast, LABELS.flip(0), seeds=[1, 2, 3, 4], with_frames=True)
    after = first.images, first.tokens, first.frames[0]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_known_tokens_that_are_corrected_while_drawing_are_drawn_plainly(sampler, fast, recorder):
    images, mask = torch.rand(4, 3, 8, 8) * 2 - 1, torch.eye(8)
    known = known_outside(sampler.tokenizer, images, mask, refit_known=True)
    with pytest.warns(UserWarning, match="known tokens are corrected while drawing"):
        drawn = seeded(fast, known=known)
    assert equal(drawn, seeded(sampler, known=known))
    assert recorder.num_recorded == 0


def test_known_tokens_go_in_and_are_gone_at_the_next_batch(sampler, fast, recorder):
    known = KnownTokens(torch.randint(24, (4, 21)), torch.rand(4, 21) < 0.5)
    plain = seeded(sampler)
    assert equal(seeded(fast), plain)
    assert equal(seeded(fast, known=known), seeded(sampler, known=known))
    assert equal(seeded(fast), plain)
    assert recorder.num_recorded == 1


def test_each_size_setting_and_precision_has_a_recording(fast, recorder):
    seeded(fast)
    seeded(fast, settings=FREE)
    seeded(fast, LABELS.repeat(2), seeds=range(8))
    with torch.autocast("cpu", torch.bfloat16):
        seeded(fast)
    seeded(fast)
    assert recorder.num_recorded == 4


def test_a_last_smaller_batch_is_padded_and_one_that_comes_again_is_not(sampler, fast, recorder):
    known = KnownTokens(torch.zeros(4, 21, dtype=torch.long), torch.ones(4, 21).bool())
    seeded(fast, known=known)  # leaves tokens in the rows that are padded
    expected = seeded(sampler, LABELS[:3])
    last = seeded(fast, LABELS[:3])
    assert last.images.shape[0] == 3
    assert torch.equal(last.tokens, expected.tokens)
    assert recorder.num_recorded == 1
    assert equal(seeded(fast, LABELS[:3]), expected)
    assert recorder.num_recorded == 2
    seeded(fast, LABELS[:3], FREE)
    assert recorder.num_recorded == 3, "another setting has nothing to be padded to"


def test_only_so_many_recordings_are_kept_and_the_oldest_goes_first(sampler, recorder):
    fast = FastSampler(
        sampler.var, sampler.tokenizer, compile_mode="none", recorder=recorder, max_graphs=2
    )
    for count in (1, 2, 1, 3, 1):  # 2 was used longest ago when 3 came
        seeded(fast, LABELS[:count])
    assert recorder.num_recorded == 3
    seeded(fast, LABELS[:2])
    seeded(fast, LABELS[:2])
    assert recorder.num_recorded == 4


def test_a_recording_that_fails_leaves_an_eager_sampler_and_says_so_once(sampler, fast, recorder):
    recorder.fails_with = [RuntimeError("operation not permitted\nwhile capturing")]
    expected = seeded(sampler)
    with pytest.warns(UserWarning, match=r"operation not permitted\), .*without a CUDA graph"):
        assert equal(seeded(fast), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(seeded(fast), expected)
        assert equal(seeded(fast, settings=FREE), seeded(sampler, settings=FREE))
    assert recorder.num_recorded == 0


def test_without_memory_other_recordings_go_first(sampler, fast, recorder):
    seeded(fast, LABELS[:2])
    recorder.fails_with = [torch.OutOfMemoryError("no")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(seeded(fast), seeded(sampler))
    assert recorder.num_recorded == 2


def test_a_size_without_memory_is_drawn_plainly_and_others_are_still_recorded(
    sampler, fast, recorder
):
    recorder.fails_with = [torch.OutOfMemoryError("no")]
    with pytest.warns(UserWarning, match="no memory to record batches of 4"):
        assert equal(seeded(fast), seeded(sampler))
    seeded(fast, LABELS[:2])
    assert recorder.num_recorded == 1
    assert equal(seeded(fast), seeded(sampler))
    assert recorder.num_recorded == 1


def test_an_interrupted_recording_keeps_nothing(sampler, fast, recorder):
    recorder.fails_with = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        seeded(fast)
    assert equal(seeded(fast), seeded(sampler))
    assert recorder.num_recorded == 1


def test_a_batch_that_fails_leaves_the_next_one_whole(sampler, fast):
    seeded(fast)
    wrong = KnownTokens(torch.zeros(4, 5, dtype=torch.long), torch.ones(4, 5).bool())
    with pytest.raises(RuntimeError):
        seeded(fast, known=wrong)
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.2"):
        seeded(fast, torch.tensor([9, 9, 9, 9]))
    assert equal(seeded(fast), seeded(sampler))


@pytest.mark.parametrize(
    ("settings", "make_random", "why"),
    [
        (SMOOTH, lambda: ImageSeeds(SEEDS), "more_smooth"),
        (GUIDED, lambda: torch.Generator().manual_seed(0), "a stream of random numbers"),
        (GUIDED, lambda: None, "a stream of random numbers"),
    ],
)
def test_what_cannot_be_recorded_is_drawn_plainly_and_said_once(
    sampler, fast, recorder, settings, make_random, why
):
    torch.manual_seed(1)
    expected = sampler.draw(LABELS, settings, make_random())
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=f"{why}.*, so pictures are drawn without a CUDA graph"):
        assert equal(fast.draw(LABELS, settings, make_random()), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.draw(LABELS, settings, make_random())
    assert recorder.num_recorded == 0


def test_as_many_steps_as_a_raster_scan_has_are_not_recorded(fast, recorder, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_STEPS", 2)
    with pytest.warns(UserWarning, match="this VAR draws in 3 steps"):
        seeded(fast)
    assert recorder.num_recorded == 0


def test_steps_and_numbers_that_were_drawn_before_are_those_of_the_plain_sampler(sampler, fast):
    numbers = ImageSeeds(SEEDS).uniform(slice(0, 21), torch.device("cpu"))
    expected = seeded(sampler)
    assert equal(fast.draw(LABELS, GUIDED, GivenUniforms(numbers)), expected)
    parts = [step.tokens for step in fast.steps(LABELS, GUIDED, ImageSeeds(SEEDS))]
    assert torch.equal(torch.cat(parts, dim=1), expected.tokens)


def test_in_half_precision_it_draws_what_autocast_draws(sampler, recorder):
    with torch.autocast("cpu", torch.bfloat16):
        expected = seeded(sampler)
    plain = FastSampler(sampler.var, sampler.tokenizer, None, "none", recorder)
    asked = FastSampler(sampler.var, sampler.tokenizer, torch.bfloat16, "none", recorder)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seeded(plain).tokens, expected.tokens)
    drawn = seeded(asked)
    assert torch.equal(drawn.tokens, expected.tokens)
    assert (drawn.images - expected.images).abs().mean() <= 4 / 255
    parts = [step.tokens for step in asked.steps(LABELS, GUIDED, ImageSeeds(SEEDS))]
    assert torch.equal(torch.cat(parts, dim=1), expected.tokens)


def test_it_can_be_recorded_in_inference_mode_and_used_outside(sampler, fast):
    expected = seeded(sampler)
    with torch.inference_mode():
        assert equal(seeded(fast), expected)
    assert equal(seeded(fast), expected)


def test_the_callers_networks_stay_as_they_are(sampler, recorder, monkeypatch):
    compiled_vars = []
    monkeypatch.setattr(compiled, "compile_drawing", lambda var, mode: compiled_vars.append(var))
    before = {name: weight.clone() for name, weight in sampler.var.state_dict().items()}
    seeded(FastSampler(sampler.var, sampler.tokenizer, torch.bfloat16, "none", recorder))
    assert len(compiled_vars) == 1
    assert compiled_vars[0] is not sampler.var
    assert all(block.compiled_draw is None for block in sampler.var.layers)
    for name, weight in sampler.var.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


def test_on_a_cpu_the_fast_choice_records_nothing(sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fast in (None, False):
            found = open_sampler(sampler.var, sampler.tokenizer, fast)
            assert not isinstance(found, FastSampler)
    with pytest.warns(UserWarning, match="CUDA graphs need a CUDA GPU, .* on the cpu as usual"):
        found = open_sampler(sampler.var, sampler.tokenizer, True)
    assert not isinstance(found, FastSampler)
    assert torch.equal(seeded(found).tokens, seeded(sampler).tokens)


def test_the_plain_sampler_too_casts_weights_once(sampler):
    found = open_sampler(sampler.var, sampler.tokenizer, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = seeded(sampler)
    assert torch.equal(seeded(found).tokens, expected.tokens)


def test_what_is_not_recorded_is_drawn_from_weights_cast_once(sampler, recorder, casts):
    sampler.var.requires_grad_(False)  # the autocast of a frozen weight remembers nothing
    fast = FastSampler(sampler.var, sampler.tokenizer, None, "none", recorder)
    with torch.autocast("cpu", torch.bfloat16), casts(sampler.var) as first:
        expected = [step.tokens for step in fast.steps(LABELS, GUIDED, ImageSeeds(SEEDS))]
        assert first.most == 1
    with torch.autocast("cpu", torch.bfloat16), casts(sampler.var) as again:
        steps = [step.tokens for step in fast.steps(LABELS, GUIDED, ImageSeeds(SEEDS))]
        fast.plain().draw(LABELS, SMOOTH, ImageSeeds(SEEDS))
        assert again.most == 0
        plain = [step.tokens for step in sampler.steps(LABELS, GUIDED, ImageSeeds(SEEDS))]
        assert again.most > 1, "autocast casts at every step, or this could not fail"
    for tokens, same, by_autocast in zip(steps, expected, plain, strict=True):
        assert torch.equal(tokens, same)
        assert torch.equal(tokens, by_autocast)


def test_the_clock_chooses_a_decoder_only_where_it_is_asked(sampler, recorder, monkeypatch):
    timed = []
    choice = DecoderChoice((DecoderTiming("fp32", 1.0, 0.0),), ())
    monkeypatch.setattr(compiled, "choose_decoder", lambda *_: timed.append(1) or choice)
    networks = sampler.var, sampler.tokenizer, torch.bfloat16, "none", recorder
    seeded(FastSampler(*networks))
    assert not timed
    seeded(FastSampler(*networks, times_decoders=True))
    assert timed
    made = []
    monkeypatch.setattr(
        compiled, "FastSampler", lambda *_, times_decoders: made.append(times_decoders)
    )
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    for fast in (None, True):
        open_sampler(on_gpu, sampler.tokenizer, fast, num_images=10**6)
    assert made == [False, True]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compiled_blocks_draw_the_same_tokens(sampler, recorder):
    # Fusing moves a logit by some 1e-6, which moves no draw here; see the tolerance on logits in
    # tests/models/test_drawing_copy.py.
    fast = FastSampler(sampler.var, sampler.tokenizer, None, "default", recorder)
    drawn, expected = seeded(fast), seeded(sampler)
    assert torch.equal(drawn.tokens, expected.tokens)
    torch.testing.assert_close(drawn.images, expected.images)


@pytest.mark.gpu
@pytest.mark.parametrize("compile_mode", ["none", "default"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_cuda_graph_draws_what_the_plain_sampler_draws(sampler, compile_mode, dtype):
    var, tokenizer = sampler.var.cuda(), sampler.tokenizer.cuda()
    fast = FastSampler(var, tokenizer, dtype, compile_mode)
    plain = open_sampler(var, tokenizer, False, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fall-back would be told
        for settings, count in ((GUIDED, 4), (FREE, 4), (GUIDED, 3), (GUIDED, 3), (GUIDED, 4)):
            labels = LABELS[:count]
            known = KnownTokens(
                torch.randint(24, (count, 21)).cuda(), (torch.rand(count, 21) < 0.3).cuda()
            )
            for others in ({}, {"with_frames": True}, {"known": known}):
                found = seeded(fast, labels, settings, **others)
                expected = seeded(plain, labels, settings, **others)
                # Another kernel may round a number across a boundary; without any, never.
                same = (found.tokens == expected.tokens).float().mean()
                assert same == 1 or (compile_mode == "default" and same > 0.8)
                if same == 1:
                    assert (found.images - expected.images).abs().mean() <= 4 / 255
