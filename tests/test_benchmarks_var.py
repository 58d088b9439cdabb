"""The benchmarks of stage 2 run and say what they measured; how fast, no test asks."""

import copy
import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import var_adaln
import var_parts
import var_step
from harness.options import exit_code
from harness.roofline import measured_tflops
from var_sizes import SIZES, build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
QUICK = ["--size", "tiny", "--rounds", "1", "--lap_s", "0"]


@pytest.fixture(autouse=True)
def _settings_of_the_process_are_put_back():
    yield
    torch.set_flush_denormal(False)


def test_the_step_prints_its_rows(capsys):
    assert var_step.main([*QUICK, "--no_memory", "--peak_tflops", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"GFLOP/image", "peak"} <= set(lines[1].split())
    rows = [var_step.PLAIN, var_step.PLAIN_CACHED, var_step.EAGER]
    assert all(any(line.startswith(row) for line in lines) for row in rows)


def test_the_parts_print_their_rows(capsys):
    assert var_parts.main(QUICK) == 0
    printed = capsys.readouterr().out
    rows = [
        *(var_parts.attention_row(w, "segmented") for w in (var_parts.FORWARD, var_parts.BOTH)),
        *(var_parts.depth_row(depth, var_parts.CACHED) for depth in SIZES["tiny"].cached_depths),
        *(var_parts.TEACHER, var_parts.HEAD_OURS, var_adaln.STACKED, var_adaln.ONCE),
    ]
    assert [row for row in rows if row not in printed] == []


def test_our_step_and_the_plain_one_end_at_the_same_weights():
    plain = var_step.Learner(SIZES["tiny"], 2, CPU, "32-true")
    ours, before = copy.deepcopy(plain), copy.deepcopy(plain)
    tokenizer = build_tokenizer(SIZES["tiny"], CPU)
    for learner, attention in ((ours, "auto"), (plain, "dense")):
        learner.set_up(var_step.Settings(attention))
        learner.optimizer.param_groups[0]["lr"] = 1e-3
        torch.manual_seed(1)
        if learner is ours:
            learner.step(tokenizer.quantizer)
        else:
            learner.plain_step(tokenizer, tokenises=False)
    weights = [
        torch.cat([p.detach().flatten() for p in learner.network.parameters()])
        for learner in (ours, plain, before)
    ]
    moved, apart = (weights[0] - weights[2]).abs().mean(), (weights[0] - weights[1]).abs().mean()
    assert moved > 0
    # AdamW's first step is the gradient's sign, so noise around 0 moves some weights apart.
    assert apart < 1e-2 * moved


def test_rows_share_one_network_and_let_it_go():
    rivals = var_step.build_rivals(SIZES["tiny"], 2, CPU, "32-true")
    made = []
    build = var_step.Learner.__init__

    def counted(self, *args):
        made.append(weakref.ref(self))
        build(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(var_step.Learner, "__init__", counted)
        laps = [rival.build() for rival in rivals]
        assert [lap(1) > 0 for lap in laps] == [True] * len(laps)
        assert len(made) == 1
        del laps
        gc.collect()
        assert made[0]() is None


def test_every_size_has_a_formula():
    gflops = {name: size.costs.training / 1e9 for name, size in SIZES.items()}
    # The table of the research: GFLOP for a training image, by the exact mask.
    known = {"d16": 896, "d20": 1715, "d24": 2927, "d30": 5649, "d36-s": 34204}
    assert {name: gflops[name] for name in known} == pytest.approx(known, rel=2e-3)


def test_the_rate_of_products_is_measured():
    assert measured_tflops(CPU, side=64, rounds=1) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [var_step, var_parts])
def test_without_a_gpu_one_line_says_so(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cuda"])
    assert exit_code(benchmark.main) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
