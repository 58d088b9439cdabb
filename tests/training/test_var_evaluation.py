"""`varlit var test` as a user types it, on one process and on two, and what it leaves behind."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from varlit.cli import main as command_line
from varlit.errors import UserError
from varlit.generation.packed import PackedSampler
from varlit.generation.recorded.compiled import FastSampler, open_sampler
from varlit.metrics.measures import Measures
from varlit.metrics.published import VARS
from varlit.models.files import load_tokenizer, save_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE
from varlit.training.evaluation import Evaluation
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.var_evaluation import published_of, subject_of, titles_of, with_drawing

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
FIT = [
    *("var", "fit", "-c", "digits", *CPU, "--trainer.max_steps", "2", "--name", "toy"),
    *("--data.batch_size", "8", "--samples.every_n_steps", "0", "--completions.every_n_steps", "0"),
    *("--model.var.depth", "1", "--model.var.width", "32", "--model.var.num_heads", "2"),
]


class Corners(nn.Module):
    """A program in a file, as users may have one: uint8 images to features and classes."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.float().flatten(1) / 255
        return flat[:, :6], flat[:, -5:] * 4


@pytest.fixture
def trained(cache, tmp_path, monkeypatch) -> Path:
    """A run of two steps, its reference and a feature network, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))
    assert command_line.main([*FIT, "--data.tokens", str(cache)]) == 0
    torch.jit.script(Corners()).save("corners.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3), dtype=np.uint8)
    np.savez("real.npz", pixels)
    np.savez("large.npz", np.zeros((60, 8, 8, 3), np.uint8))
    return tmp_path


def words_of(**settings) -> list[str]:
    given = {
        "quick": 50,
        "batch_size": 8,
        "network": "torchscript",
        "weights": "corners.pt",
        "trust_torchscript": "true",
        "reference": "real.npz",
        "save_every_s": 0,
    } | settings
    words = ["var", "test", "--name", "toy", *CPU]
    for name, value in given.items():
        words += [f"--model.evaluation.{name}", str(value)]
    return words


def metrics() -> dict:
    return json.loads(Path("runs/toy/metrics.json").read_text())


@pytest.mark.filterwarnings("ignore")
def test_the_figures_and_their_protocol_are_kept(trained, capsys):
    assert command_line.main(words_of()) == 0
    said = capsys.readouterr().out
    found, name = metrics(), "quick_frechet_torchscript_corners"
    assert "quick Frechet distance (torchscript_corners)" in said
    assert "var test: toy: a quick look, 50 images" in said
    assert found[name] > 0
    assert "quick_precision_torchscript_corners" in found
    assert found["test/loss/mean"] > 0
    protocol = found["protocol"]
    assert protocol["sampling"]["num_classes"] == 3
    assert len(protocol["weights"]["var_sha256"]) == 64
    assert protocol["reference"] == "real.npz"
    assert protocol["num_processes"] == 1
    # The same samples by the other verb: nothing is drawn again.
    words = ["evaluate", "toy", "--quick", "50", "--network", "torchscript", "--weights"]
    words += ["corners.pt", "--trust_torchscript", "--reference", "real.npz", "--device", "cpu"]
    assert command_line.main([*words, "--batch_size", "8", "--out", "runs/toy/other.json"]) == 0
    other = json.loads(Path("runs/toy/other.json").read_text())
    assert other["protocol"]["protocol_hash"] == protocol["protocol_hash"]
    assert other[name] == pytest.approx(found[name], rel=1e-5)
    assert len(list(Path("runs/toy/evaluation").iterdir())) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "large.npz"}, "8 px; the samples have 16 px"),
        ({"trust_torchscript": "false"}, "to load it is to run it"),
        ({"reference": ""}, "--model.evaluation.reference FILE.npz"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(trained, settings, message, capsys):
    assert command_line.main(words_of(**settings)) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs/toy/evaluation").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_find_what_one_finds_and_go_on_where_one_was_cut_off(trained):
    assert command_line.main(words_of()) == 0
    one = metrics()
    (whole,) = Path("runs/toy/evaluation").glob("*/rank-0-*.pt")
    whole.unlink()
    run_two([*words_of(), *DDP])
    two = metrics()
    assert two["protocol"]["num_processes"] == 2
    first, second = sorted(whole.parent.glob("*.pt"))
    assert first.name.startswith("rank-0-00000026-")
    assert second.name.startswith("rank-1-00000024-")
    second.unlink()  # lost; a single process draws that part anew
    assert command_line.main(words_of()) == 0
    for found in (two, metrics()):
        for name, value in one.items():
            if name.startswith("quick"):
                assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.fixture
def classifier(trained) -> list[str]:
    """Settings of rejection sampling by a network of torchvision's, with a file of weights."""
    torch.manual_seed(4)
    network = models.shufflenet_v2_x0_5(num_classes=3)
    torch.save(network.state_dict(), "judge.pth")
    given = {"keep": 0.5, "classifier": "torchvision:shufflenet_v2_x0_5"}
    given |= {"classifier_weights": "judge.pth", "classifier_classes": "2,0,1"}
    pairs = [(f"--model.evaluation.{name}", str(value)) for name, value in given.items()]
    return [word for pair in pairs for word in pair]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_choose_what_one_chooses(trained, classifier, capsys):
    assert command_line.main([*words_of(), *classifier]) == 0
    said = capsys.readouterr().out
    assert "var test: toy-re (rejection sampling, keep 0.5)" in said
    assert "kept 50 of 100 images drawn (50.0%)" in said
    one = metrics()
    assert len(one["protocol"]["sampling"]["classifier_weights_sha256"]) == 64
    assert one["protocol"]["sampling"]["classifier_classes"] == "2,0,1"
    (whole,) = Path("runs/toy/evaluation").glob("*/rank-0-*.pt")
    whole.unlink()
    run_two([*words_of(), *classifier, *DDP])
    two = metrics()
    assert two["protocol"]["num_processes"] == 2
    for part in ("images_drawn", "images_kept", "acceptance_share", "top1_kept"):
        assert two["protocol"]["rejection_cost"][part] == one["protocol"]["rejection_cost"][part]
    for name, value in one.items():
        if name.startswith("quick"):
            assert two[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_of_other_classes_is_refused_before_anything_is_drawn(
    trained, classifier, capsys
):
    words = classifier[:-2]
    state = torch.load("judge.pth", weights_only=True)
    state |= {"fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}
    torch.save(state, "judge.pth")
    assert command_line.main([*words_of(), *words]) == 2
    assert "the classifier has 7 classes and the model 3 (cat, dog, owl)" in capsys.readouterr().err
    assert not Path("runs/toy/evaluation").exists()


@pytest.mark.filterwarnings("ignore")
def test_tokens_of_another_tokenizer_are_refused_before_anything_is_drawn(
    trained, cache, tmp_path, capsys
):
    # Of the same shape, so that nothing but its hash tells.
    other = tmp_path / "other"
    shutil.copytree(cache, other)
    torch.manual_seed(9)
    tokenizer = VQVAE(load_tokenizer(cache / "tokenizer").config)
    save_tokenizer(tokenizer, other / "tokenizer")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer_hash"] = tokenizer_hash(tokenizer)
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert command_line.main([*words_of(), "--data.tokens", str(other)]) == 2
    assert "the checkpoint of this run has tokenizer_hash = " in capsys.readouterr().err
    assert not Path("runs/toy/evaluation").exists()


def run_two(words):
    source = Path(__file__).resolve().parents[2] / "src"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-m", "varlit", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


COMPARABLE = {
    **{"features": "inception", "feature_dim": 2048, "weights_sha256": "6726825d" + "0" * 56},
    **{"num_images": 50_000, "is_quick": False, "image_px": 256, "rounding": "uint8, nearest"},
    **{"reference": "VIRTUAL_imagenet256_labeled.npz", "reference_images": None, "remarks": []},
}


@pytest.mark.parametrize(
    ("protocol", "is_comparable"),
    [
        ({}, True),
        ({"num_images": 5000}, False),
        ({"features": "mobilenet_v2"}, False),
        ({"weights_sha256": "0" * 64}, False),
        ({"reference": "photos val"}, False),
        ({"reference_images": 1000}, False),
        ({"rounding": "uint8, down"}, False),
        ({"remarks": ["the numbers compare with no published ones"]}, False),
    ],
)
def test_published_figures_stand_beside_evaluations_of_their_own_protocol_alone(
    protocol, is_comparable
):
    whole = COMPARABLE | protocol
    leading = Measures(whole["features"], whole["num_images"], 3.0, protocol=whole)
    found = published_of(16, 1024, 256, 1000, Evaluation((leading,), whole))
    expected = {row.kind: row.fid for row in VARS["d16"]} if is_comparable else {}
    assert {kind: figures["fid"] for kind, figures in found.items()} == expected


def test_chosen_images_stand_beside_published_rows_of_chosen_images_alone():
    leading = Measures("inception", 50_000, 3.0, protocol=COMPARABLE)
    chosen = Evaluation((leading,), COMPARABLE | {"sampling": {"keep": 0.25}})
    found = published_of(30, 1920, 256, 1000, chosen)
    assert {kind: row["fid"] for kind, row in found.items()} == {
        row.kind: row.fid for row in VARS["d30-re"]
    }
    assert published_of(16, 1024, 256, 1000, chosen) == {}


def test_figures_are_read_by_human_names_the_distance_first():
    told = [
        Measures("inception", 50_000, 3.0, score_mean=280.0, precision=0.8, protocol={}),
        Measures("inception", 50_000, 4.0, precision=0.7, protocol={"reference": "val"}),
    ]
    found = Evaluation(tuple(told), {})
    titles = titles_of(found)
    assert list(titles.values())[:3] == ["FID", "IS", "precision"]
    assert set(found.to_dict()) <= set(titles)
    assert titles["fid against val"] == "FID against val"


def test_the_way_of_drawing_is_told_and_is_in_the_name_only_where_it_is_not_the_usual_one(
    make_var_module,
):
    module = make_var_module()
    var, tokenizer = module.averaged, module.tokenizer
    config = EvaluationConfig(quick=3)
    plain = open_sampler(var, tokenizer, False, num_images=50_000)
    assert subject_of(plain, config, "fp32", nullcontext).more == {}
    packed = PackedSampler(var, tokenizer)
    assert subject_of(packed, config, "fp32", nullcontext).more == {"drawn": "packed"}
    in_bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
    assert subject_of(packed, config, "bf16-mixed", in_bf16).more == {}, "then it is the plain one"
    assert packed.var is var, "whose hash is in the protocol"
    fast = FastSampler(var, tokenizer, compile_mode="none", recorder=object())
    assert subject_of(fast, config, "fp32", nullcontext).more == {"drawn": "recorded"}
    compiled = FastSampler(var, tokenizer, recorder=object())
    assert subject_of(compiled, config, "fp32", nullcontext).more == {"drawn": "compiled"}
    found = Evaluation((), {"sampling": {}})
    assert with_drawing(found, plain).protocol == {"sampling": {}, "drawn": "eager"}
    found = Evaluation((), {"sampling": {"drawn": "recorded"}})
    assert with_drawing(found, fast).protocol["drawn"] == "recorded"
    fast.told.add("the GPU has no memory")
    told = with_drawing(found, fast).protocol["drawn"]
    assert told == "recorded, some or all batches eager"


def test_a_module_without_a_reference_is_refused(make_var_module, make_trainer, tokens):
    module = make_var_module(evaluation=EvaluationConfig(quick=9))
    with pytest.raises(UserError, match=r"--model\.evaluation\.reference"):
        make_trainer().test(module, tokens, verbose=False)
