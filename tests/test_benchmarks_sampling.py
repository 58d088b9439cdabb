"""The benchmarks of sampling run, and what they race draws the same; how fast, no test asks."""

import sys
import time
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import sampling
import sampling_parts
import var_against_raster
from harness.options import exit_code
from harness.report import Report
from harness.stopwatch import NotTimedError, Rival, Stopwatch, lap_of, one_thread, race
from plain_sampling import PlainSampler, plain_draw
from sampling_limits import batch_1_floor_s, limit_of, most_images_per_s
from var_sizes import SIZES, build_tokenizer, build_var

from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.ops.filtering import draw, filter_logits

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
QUICK = ["--size", "tiny", "--rounds", "1", "--lap_s", "0"]


@pytest.fixture(autouse=True)
def _settings_of_the_process_are_put_back():
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def networks():
    """A transformer whose weights are large enough for every part of it to sway the tokens."""
    var, tokenizer = build_var(SIZES["tiny"], CPU).eval(), build_tokenizer(SIZES["tiny"], CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in var.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        tokenizer.quantizer.codebook.weight.normal_(generator=generator)
    return var, tokenizer


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (40, 0.0), (0, 0.7), (40, 0.9)])
def test_the_plain_sampler_draws_our_tokens(networks, cfg_scale, top_k, top_p):
    settings = SamplingSettings(cfg_scale, top_k, top_p)
    labels = torch.tensor([3, 999, 1000])
    plain, latent = PlainSampler(*networks).draw_tokens(
        labels, settings, torch.Generator().manual_seed(1)
    )
    ours = Sampler(*networks).draw(labels, settings, torch.Generator().manual_seed(1))
    assert torch.equal(plain, ours.tokens)
    assert len(plain.unique()) > 10
    torch.testing.assert_close(networks[1].decode_features(latent), ours.images)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (9, 0.0), (0, 0.5), (9, 0.9)])
def test_the_plain_draw_is_the_plain_definition(top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 64, generator=generator) * 2
    if not top_p:  # of ties at the edge of top-p an unstable sort cuts any
        logits = logits.round()
    plain, expected = (torch.Generator().manual_seed(7) for _ in range(2))
    drawn = plain_draw(logits, top_k, top_p, plain)
    assert torch.equal(drawn, draw(filter_logits(logits, top_k, top_p), expected))
    assert len(drawn.unique()) > 5


def test_the_parts_print_their_rows(capsys):
    assert sampling_parts.main(QUICK) == 0
    told = capsys.readouterr().out
    rows = [*sampling_parts.ways_to_draw(torch.Generator()), sampling_parts.DECODER]
    rows += [sampling_parts.ONCE_BLOCK, sampling_parts.ONE_ROW, sampling_parts.OWN_POSITIONS]
    assert [row for row in [*rows, sampling_parts.ONCE] if f"\n{row} " not in told] == []
    assert "clock processor time" in told


def test_other_tokens_are_not_timed(monkeypatch):
    monkeypatch.setattr(sampling_parts, "draw_exactly_at", lambda logits, at: at.long())
    parts = sampling_parts.Parts(SIZES["tiny"], 2, CPU, "32-true")
    rivals = {rival.name: rival for rival in sampling_parts.drawing_rivals(parts)}
    rivals[sampling_parts.EXACT_STREAM].build()
    with pytest.raises(AssertionError, match="draws other tokens"):
        rivals[sampling_parts.EXACT_SEEDS].build()


def test_whole_samples_print_their_rows(capsys):
    assert sampling.main(QUICK) == 0
    told = capsys.readouterr().out
    rows = [f"tiny, batch {n}: {way}" for n in (1, 2) for way in (sampling.PLAIN, sampling.EAGER)]
    assert [row for row in rows if f"\n{row} " not in told] == []


def test_both_orders_print_steps_and_operations(capsys):
    assert var_against_raster.main(QUICK) == 0
    header, *rows = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[-5:] == ["steps", "tokens", "GFLOP", "by", "formula"]
    cells = [row.split() for row in rows if row.startswith("width")]
    scan, pyramid = ["25", "25"], ["3", "30"]
    assert [row[-3:-1] for row in cells] == [scan, pyramid, scan, scan, pyramid] * 2


def test_the_plain_raster_scan_draws_our_tokens():
    size = var_against_raster.MEETINGS["tiny"][0].raster
    networks = build_var(size, CPU).eval(), build_tokenizer(size, CPU)
    labels, settings = torch.tensor([0, 1]), SamplingSettings(1.5, 9, 0.9)
    plain, ours = (torch.Generator().manual_seed(1) for _ in range(2))
    tokens = PlainSampler(*networks).draw_raster(labels, settings, plain)
    assert torch.equal(tokens, Sampler(*networks).draw(labels, settings, ours).tokens)
    assert len(tokens.unique()) > 10


def test_both_orders_have_one_shape():
    meeting = var_against_raster.MEETINGS["small"][0]
    pair = meeting.next_scale, meeting.raster
    assert [size.steps.num_steps for size in pair] == [10, 256]
    assert pair[0].tokenizer.image_size == pair[1].tokenizer.image_size
    assert pair[0].var == replace(pair[1].var, order="next_scale")
    tiny = var_against_raster.MEETINGS["tiny"][0]
    blocks = [
        sum(w.numel() for w in build_var(size, CPU).blocks.parameters())
        for size in (tiny.next_scale, tiny.raster)
    ]
    assert blocks[0] == blocks[1]


def test_limits_are_those_of_the_research():
    # At 790 TFLOP/s, and 3.0 TB/s of an H100 or 4.3 of an H200.
    known = {
        "d16": (1.67, 1.32, 797),
        "d20": (3.22, 2.54, 514),
        "d24": (5.51, 4.34, 337),
        "d30": (10.68, 8.40, 190),
    }
    found = {
        name: (
            batch_1_floor_s(SIZES[name], 3.0e12) * 1e3,
            batch_1_floor_s(SIZES[name], 4.3e12) * 1e3,
            most_images_per_s(SIZES[name]),
        )
        for name in known
    }
    assert found == {name: pytest.approx(row, rel=4e-3) for name, row in known.items()}


def test_limits_and_targets_stand_beside_each_row(monkeypatch):
    monkeypatch.setattr(sampling, "device_name", lambda _: "NVIDIA H100 80GB HBM3")
    settings = SamplingSettings()
    cells = {
        n: sampling.beside(sampling.Heat("d16", n, torch.device("cuda"), True, settings))
        for n in (1, 64)
    }
    seconds = {1: 8e-3, 64: 64 / 360}
    told = {n: {k: cell(seconds[n]) for k, cell in cells[n].items()} for n in cells}
    assert told[1] == {"roofline": "1.67 ms", "of roofline": "21%", "target": "8.00 ms"}
    assert told[64] == {"roofline": "797/s", "of roofline": "45%", "target": "360/s"}
    assert limit_of("d20", SIZES["d20"], 1, "H100").target_s == 0
    assert sampling.beside(sampling.Heat("d16", 1, CPU, False, settings)) == {}


def test_a_sampler_that_could_not_record_is_not_timed_as_one_that_did():
    with pytest.raises(NotTimedError, match=r"^no memory for it$"), sampling.as_recorded():
        warnings.warn("no memory for it, so pictures are drawn without a CUDA graph", stacklevel=1)


def test_what_does_not_fit_says_so_and_the_others_go_on():
    def too_large():
        raise torch.OutOfMemoryError

    def late():
        return lap_of(too_large, CPU)

    def fits():
        return lap_of(lambda: None, CPU)

    extra = {"more": lambda _: "yes"}
    timings = race(
        [
            Rival("at once", too_large, 1),
            Rival("late", late, 1, extra=extra),
            Rival("fits", fits, 1, "late", extra=extra),
        ],
        rounds=2,
        least_lap_s=0,
    )
    rows = Report("b", {}, timings).table()
    assert rows[0] == ["what", "ms", "spread", "images/s", "more"]
    assert rows[1] == ["at once", "out of memory", "-", "-", "-"]
    assert rows[2][:2] == ["late", "out of memory"]
    assert rows[3][-1] == "yes"


def test_a_group_is_let_go_before_the_next_is_built():
    alive = []

    class Held:
        pass

    def build():
        held = Held()
        alive.append(weakref.ref(held))
        number = sum(one() is not None for one in alive)
        assert number == 1
        return lambda _: 1.0 if held else 0.0

    timings = race([Rival(n, build, 1, group=n) for n in "AB"], rounds=1, least_lap_s=0)
    assert [t.laps_s for t in timings] == [(1.0,), (1.0,)]


def test_in_one_thread_the_processor_is_timed_and_then_all_is_as_before():
    before = torch.get_num_threads(), Stopwatch.cpu_clock
    with one_thread():
        assert torch.get_num_threads() == 1
        # Sleeping takes no time of the processor.
        assert lap_of(lambda: time.sleep(0.05), CPU)(1) < 0.04
    assert (torch.get_num_threads(), Stopwatch.cpu_clock) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [sampling, sampling_parts, var_against_raster])
def test_without_a_gpu_one_line_says_so(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cuda"])
    assert exit_code(benchmark.main) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
