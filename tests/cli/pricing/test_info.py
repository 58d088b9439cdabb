"""`varlit info`: exact counts, sane estimates, by recipe and by run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from varlit.cli import main as command_line
from varlit.cli.config.recipes import conf_folder
from varlit.cli.pricing.costs import var_card
from varlit.cli.pricing.info import find_settings, merge, parse_overrides
from varlit.cli.pricing.tracing import block_bytes, count, traced
from varlit.errors import UserError
from varlit.models.config import VARConfig
from varlit.models.initialization import shapes_only
from varlit.ops.scales import Scales

RECIPES = sorted(p for p in (conf_folder() / "var").glob("*.yaml") if p.stem != "base")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_d16_has_the_official_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info", "d16"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"parameters\s+310 M .*width 1024, 16 heads", told)
    assert re.search(r"tokens\s+680 an image of 256 px", told)
    assert re.search(r"peak lr 0\.0003 = 0\.0001 x 768 / 256", told)
    assert "1,668 an epoch" in told


def test_the_tokenizer_has_the_official_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info", "imagenet256"]) == 0
    told = capsys.readouterr().out
    # official-code.md: tokenizing an image takes 215 GFLOPs.
    assert "215 GFLOPs to encode" in told
    assert re.search(r"parameters\s+109 M", told)
    assert "discriminator" in told


def test_overrides_change_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info", "d16", "--model.var.depth", "20"]) == 0
    assert "width 1280, 20 heads" in capsys.readouterr().out


def test_a_name_of_both_stages_shows_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info", "digits"]) == 0
    told = capsys.readouterr().out
    assert "[tokenizer]" in told
    assert "[var]" in told


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["d61"], "did you mean `d16`"),
        (["d16", "--model.var.dept", "3"], "did you mean `depth`"),
        (["d16", "depth=3"], "--model.var.depth 20"),
        (["d16", "--model.var.depth"], "--model.var.depth 20"),
    ],
)
def test_mistakes_are_answered(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["info", *words]) == 2
    assert hint in capsys.readouterr().err


def test_a_recipe_without_a_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: {max_epochs: 1}\n")
    with pytest.raises(UserError, match="recipe of no stage"):
        find_settings(str(path))
    path.write_text("model: {var: {depth: 2}}\n")
    assert find_settings(str(path)) == [("var", path)]


def test_settings_merge_as_the_parser_merges_them() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}
    assert parse_overrides(["--a.b", "1", "--a.c=[2]"]) == {"a": {"b": 1, "c": [2]}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_stage_2_has_a_card(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["info", str(path)]) == 0
    told = capsys.readouterr().out
    for row in ("parameters", "tokens", "compute", "memory", "batch", "steps"):
        assert re.search(rf"^  {row} +\S", told, re.MULTILINE), told


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_stage_2_passes_a_dry_run(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["var", "fit", "-c", path.stem, "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert str(path.name) in told
    assert "[var]" in told


def row(name: str, settings: dict[str, object]) -> str:
    model = {"var": {"depth": 4, "width": 64, "num_heads": 4}, **settings}
    trainer = {"precision": "bf16-mixed", "max_steps": 1}
    told = var_card({"model": model, "data": {"tokens": "none"}, "trainer": trainer})
    return next(line for line in told.splitlines() if line.split()[:1] == [name])


def test_checkpointing_costs_a_forward_pass_and_spares_memory() -> None:
    plain, again = {}, {"speed": {"checkpointing": "blocks"}}
    passes = [_train_flops(row("compute", settings)) for settings in (plain, again)]
    assert passes[1] / passes[0] == pytest.approx(4 / 3, rel=0.02)
    assert _mib(row("memory", again)) < _mib(row("memory", plain))
    with pytest.raises(UserError, match="did you mean `checkpointing`"):
        row("memory", {"speed": {"chekpointing": "blocks"}})


def test_lora_counts_what_is_trained() -> None:
    settings = {"lora": {"rank": 2, "whole": []}}
    layers = (64 + 192) + (64 + 64) + 2 * (64 + 256)
    trained = 4 * 2 * layers
    assert f"{trained / 1e6:.3g} M of them trained" in row("parameters", settings)
    plain, adapted = (_train_flops(row("compute", s)) for s in ({}, settings))
    assert adapted / plain == pytest.approx(2 / 3, rel=0.05)


def test_muon_has_one_moment_where_adamw_has_two() -> None:
    told = row("memory", {"optim": {"optimizer": "muon"}})
    assert "weights, gradients, Muon and AdamW, bf16 copies" in told
    states = [_mib(line, 0) for line in (row("memory", {}), told)]
    matrices = 4 * 12 * 64 * 64
    assert states[0] - states[1] == pytest.approx(4 * matrices / 2**20, abs=0.6)


def test_attention_is_not_counted_as_a_square_of_probabilities() -> None:
    coarse, fine = Scales((1, 2, 4)), Scales((1, 2, 4, 32))
    config = VARConfig(depth=1, width=64, num_heads=4)
    per_token = [block_bytes(config, s, is_half=False) / s.num_tokens for s in (coarse, fine)]
    assert per_token[1] == pytest.approx(per_token[0], rel=0.05)
    assert block_bytes(config, fine, is_half=True) < 0.75 * block_bytes(config, fine, False)


def _train_flops(line: str) -> float:
    found = re.search(r"([\d.]+) (M|G)FLOPs to train", line)
    assert found is not None, line
    return float(found[1]) * {"M": 1e6, "G": 1e9}[found[2]]


def _mib(line: str, which: int = 1) -> float:
    """The numbers of a memory row: 0 = states, 1 = an image."""
    size, unit = re.findall(r"([\d.]+) ([MG])iB", line)[which]
    return float(size) * {"M": 1, "G": 1024}[unit]


def test_a_trace_counts_operations_and_what_autograd_keeps() -> None:
    with shapes_only():
        network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        found = traced(lambda: network(torch.empty(3, 8)), network)
    assert count(network) == 8 * 16 + 16 + 16 * 4 + 4
    assert found.flops == 2 * 3 * (8 * 16 + 16 * 4)
    # The input of the first layer and the output of the ReLU, in fp32; weights are not counted.
    assert found.saved_bytes == 4 * (3 * 8 + 3 * 16)


MEASURED_STEP = """
import resource, sys, torch
from varlit.losses.next_scale import next_scale_loss
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR

def peak_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
batch = int(sys.argv[1])
before = peak_bytes()
tokenizer = TokenizerConfig(codebook_size=1024)
var = VAR(VARConfig(depth=6, width=384, num_heads=6, drop_path=0.0), tokenizer, 10)
optimizer = torch.optim.AdamW(var.parameters(), fused=True)
tokens = torch.randint(1024, (batch, 680))
inputs = torch.randn(batch, 679, 32)
for _ in range(2):
    logits = var(torch.zeros(batch, dtype=torch.long), inputs)
    next_scale_loss(logits, tokens, var.scales).loss.backward()
    optimizer.step()
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_the_memory_estimate_is_near_the_measured_peak(tmp_path: Path) -> None:
    settings = {
        "model": {
            "var": {"depth": 6, "width": 384, "num_heads": 6, "drop_path": 0.0},
            "optim": {"ema_decay": 0.0},
        },
        "data": {"tokens": "none", "batch_size": 8},
        "trainer": {"precision": "32-true", "max_epochs": 1},
    }
    told = var_card(settings)
    sizes = re.search(r"about (\S+) (\w)iB for .* and (\S+) (\w)iB for each image", told)
    assert sizes is not None, told
    units = {"M": 2**20, "G": 2**30}
    states = float(sizes[1]) * units[sizes[2]]
    per_image = float(sizes[3]) * units[sizes[4]]
    peaks = {}
    # Freed memory goes back at once: else the allocator's holes make a third more, now and then.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for batch in (2, 8):
        command = [sys.executable, "-c", MEASURED_STEP, str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[batch] = int(done.stdout)
    # The difference of two batches is free of what torch itself takes at first use.
    assert (peaks[8] - peaks[2]) / 6 == pytest.approx(per_image, rel=0.2)
    assert peaks[8] == pytest.approx(states + 8 * per_image, rel=0.3)
