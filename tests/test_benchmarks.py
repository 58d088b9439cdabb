"""The benchmarks run and say what they measured; how fast anything is, no test asks."""

import copy
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import tokenizer_parts
import tokenizer_step
from harness.options import exit_code
from harness.report import Report, append_section, run_facts
from harness.roofline import flops_per_image
from harness.stopwatch import Rival, Timing, lap_of, race
from tokenizer_sizes import SIZES, build_module, random_images

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
QUICK = ["--size", "tiny", "--rounds", "1", "--lap_s", "0"]
STEP_ROWS = [
    tokenizer_step.ONLY_NETWORK,
    tokenizer_step.WITH_LPIPS,
    tokenizer_step.TWO_FORWARDS,
    tokenizer_step.TWO_PASSES,
    tokenizer_step.FUSED,
]
PART_ROWS = [
    tokenizer_parts.ENCODER,
    tokenizer_parts.DECODER,
    tokenizer_parts.CACHING,
    tokenizer_parts.PYRAMID,
    tokenizer_parts.NAIVE,
    tokenizer_parts.SEARCH,
]


@pytest.fixture(autouse=True)
def _settings_of_the_process_are_put_back():
    cudnn, log = torch.backends.cudnn.benchmark, logging.getLogger("lightning.pytorch").level
    yield
    torch.set_flush_denormal(False)
    torch.backends.cudnn.benchmark = cudnn
    logging.getLogger("lightning.pytorch").setLevel(log)


def rows_of(markdown):
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.slow
def test_the_step_prints_its_rows_and_files_them(capsys, tmp_path):
    words = [*QUICK, "--no_memory", "--out", str(tmp_path)]
    assert tokenizer_step.main(words) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in STEP_ROWS)
    header, _, *rows = rows_of((tmp_path / "tokenizer_step-cpu.md").read_text())
    assert header == ["what", "ms", "spread", "images/s", "speed"]
    assert [row[0] for row in rows] == STEP_ROWS
    for row in rows:
        assert float(row[1].replace(",", "")) > 0
        assert (row[4] == "-") == (row[0] == tokenizer_step.TWO_PASSES)


def test_the_parts_print_their_rows(capsys):
    assert tokenizer_parts.main([*QUICK, "--peak_tflops", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"GFLOP/image", "peak"} <= set(lines[1].split())
    assert all(any(line.startswith(row) for line in lines) for row in PART_ROWS)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_fused_step_and_two_passes_end_at_the_same_weights():
    size = SIZES["tiny"]
    fused = build_module(size, with_perceptual=True, with_gan=True, nhwc=False)
    plain, before = copy.deepcopy(fused), copy.deepcopy(fused)
    images = random_images(size, size.batch_size, CPU, nhwc=False)
    tokenizer_step.train(fused, images, "32-true", num_steps=1)
    tokenizer_step.TwoPasses(plain, size.batch_size, "32-true").step(images)
    for name in ("network", "discriminator"):
        ours, theirs, was = (weights(getattr(m, name)) for m in (fused, plain, before))
        moved, apart = (ours - was).abs().mean(), (ours - theirs).abs().mean()
        assert moved > 0, name
        # AdamW's first step is the gradient's sign, so noise around 0 moves some weights apart.
        assert apart < 1e-3 * moved, name
    assert not torch.equal(weights(plain.average), weights(before.average))


def test_a_wrong_token_is_not_timed():
    parts = tokenizer_parts.Parts(SIZES["tiny"], 2, CPU, "32-true", nhwc=False)
    assert len(parts.vectors) == parts.tokens.numel()
    right = parts.search(tokenizer_parts.naive_search)
    wrong = right.clone()
    wrong[0] = (wrong[0] + 1) % len(parts.codebook)
    tokenizer_parts.assert_same_tokens(parts.vectors, parts.codebook, right, right)
    with pytest.raises(AssertionError, match="disagree"):
        tokenizer_parts.assert_same_tokens(parts.vectors, parts.codebook, right, wrong)


def test_rivals_run_in_turn():
    order = []

    def build(name):
        return lambda: lap_of(lambda: order.append(name), CPU)

    timings = race([Rival(n, build(n), 1) for n in "AB"], rounds=3, least_lap_s=0, warmup_runs=1)
    assert "".join(order).endswith("ABABAB")
    assert [len(timing.laps_s) for timing in timings] == [3, 3]


def timing(name, *laps_s, reference=""):
    return Timing(Rival(name, lambda: lambda _: 0.0, 8, reference), laps_s)


def test_ratios_are_taken_within_a_round():
    # The machine became four times as slow after the first round: twice as fast all the same.
    slow, fast = timing("slow", 2.0, 8.0, 8.0), timing("fast", 1.0, 4.0, 4.0)
    assert fast.speed_over(slow) == 2
    assert (fast.median_s, fast.images_per_s) == (4.0, 2.0)
    assert timing("steady", 3.0, 3.0, 3.0).spread == 0 < fast.spread


def test_results_are_added_below_what_was_there(tmp_path):
    timings = [timing("plain", 2.0), timing("ours", 1.0, reference="plain")]
    report = Report("b", {"batch": 8}, timings, peak_bytes={"ours": 3 * 2**20}, notes=("a note",))
    path = tmp_path / "new" / "b.md"
    for commit in ("one", "two"):
        append_section(path, "b", report.for_file(run_facts(CPU, commit)))
    text = path.read_text()
    assert text.startswith("# b\n")
    assert text.index(", one, ") < text.index(", two, ")
    header, _, plain, ours = rows_of(text)[:4]
    assert header == ["what", "ms", "spread", "images/s", "speed", "peak MiB"]
    assert plain == ["plain", "2,000", "0.0%", "4.00", "-", "-"]
    assert ours == ["ours", "1,000", "0.0%", "8.00", "2.00x", "3"]
    for word in ("batch 8", "threads 1", "torch", "lightning", "python", "- a note"):
        assert word in text
    assert list(path.parent.iterdir()) == [path]


def test_the_commit_is_named_and_said_to_be_dirty():
    commit = run_facts(CPU)["commit"]
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    name = commit.removeprefix("commit ").removesuffix(" (dirty)")
    assert commit == "unknown commit" if done.returncode else done.stdout.startswith(name)


def test_operations_are_counted_for_an_image():
    a, b = torch.ones(6, 3), torch.ones(3, 5)
    rival = Rival("product", lambda: lap_of(lambda: a @ b, CPU, num_skipped=2), num_images=2)
    assert flops_per_image(rival) == 2 * 6 * 3 * 5 / 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [tokenizer_step, tokenizer_parts])
def test_without_a_gpu_one_line_says_so(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cuda"])
    assert exit_code(benchmark.main) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "no CUDA GPU" in captured.err
    assert captured.out == ""


def test_a_row_that_does_not_exist_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *QUICK, "--only", "nobody"])
    assert exit_code(tokenizer_parts.main) == 2
    assert tokenizer_parts.ENCODER in capsys.readouterr().err


@pytest.mark.parametrize(("target", "device"), [("bench", "cpu"), ("bench-gpu", "cuda")])
def test_make_runs_every_benchmark(target, device):
    command = ["make", "-n", "-o", ".venv/.ready", target]
    # Settings of a make around the tests are not inherited.
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "ARGS"}}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    words = [shlex.split(line) for line in done.stdout.splitlines() if "benchmarks/" in line]
    files = {word[1] for word in words if word[2:4] == ["--device", device]}
    runnable = {
        f"benchmarks/{path.name}"
        for path in (ROOT / "benchmarks").glob("*.py")
        if "__main__" in path.read_text()
    }
    assert files == runnable


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own(tmp_path):
    script = ROOT / "benchmarks" / "tokenizer_step.py"
    command = [sys.executable, str(script), *QUICK, "--only", "fused", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    header, _, row = rows_of((tmp_path / "tokenizer_step-cpu.md").read_text())
    assert header[-1] == "peak MiB"
    module = build_module(SIZES["tiny"], with_perceptual=True, with_gan=True, nhwc=False)
    num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    # Weights, gradients and two moments in fp32 at least; no more than a process of this size.
    assert 16 * num_trained / 2**20 < float(row[-1].replace(",", "")) < 1000
