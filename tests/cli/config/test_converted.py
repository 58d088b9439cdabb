"""A converted tokenizer serves the verbs of its stage without a recipe or a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import varlit
from varlit.cli import main as command_line
from varlit.cli.config.converted import model_config, words_instead_of_a_recipe
from varlit.data.digits import load_digits
from varlit.data.tokens.manifest import read_manifest
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var, tokenizer_hash
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

SMALL = TokenizerConfig(32, (1, 1, 1, 1), 1, 0.0, 128, 16, (1, 2, 3, 4), search="cosine")


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch) -> VQVAE:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = VQVAE(SMALL).eval()
    torch.nn.init.normal_(network.quantizer.codebook.weight)
    save_tokenizer(network, Path("runs/tok"))
    save_var(VAR(VARConfig(depth=1, width=32, num_heads=2), SMALL, 10), network, Path("runs/d1"))
    return network


@pytest.mark.slow
def test_it_writes_the_cache_of_its_own_tokens_and_is_measured(tokenizer: VQVAE, capsys):
    words = ["-c", "digits", "--name", "tok", "--gpus", "0"]
    assert command_line.main(["tokenizer", "predict", *words]) == 0
    cache = Path("runs/tok/tokens")
    assert read_manifest(cache).spec.tokenizer_hash == tokenizer_hash(tokenizer)
    tokens = np.load(cache / "val-00000.tokens.npy")
    expected = tokenizer.encode(load_digits().test_images[:64])
    assert torch.equal(torch.from_numpy(tokens[:64, 0].astype(np.int64)), expected)
    assert command_line.main(["tokenizer", "test", *words]) == 0
    assert "test/psnr" in capsys.readouterr().out


class Corners(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.float().flatten(1) / 255
        return flat[:, :4], flat[:, -4:] * 9


def evaluation_words() -> dict[str, str]:
    torch.jit.script(Corners()).save("corners.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    np.savez("real.npz", pixels)
    return {
        **{"quick": "20", "batch_size": "20", "reference": "real.npz"},
        **{"network": "torchscript", "weights": "corners.pt", "trust_torchscript": "true"},
    }


def test_a_var_is_tested_without_recipe_or_cache_as_evaluate_does(
    tokenizer: VQVAE, capsys, monkeypatch, tmp_path: Path
):
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))
    given = evaluation_words()
    words = [word for k, v in given.items() for word in (f"--model.evaluation.{k}", v)]
    assert command_line.main(["var", "test", "--name", "d1", "--gpus", "0", *words]) == 0
    said = capsys.readouterr().out
    assert "held-out loss and accuracy are left out" in said
    assert "var test: d1: a quick look, 20 images" in said
    tested = json.loads(Path("runs/d1/metrics.json").read_text())
    given.pop("trust_torchscript")
    words = [word for k, v in given.items() for word in (f"--{k}", v)]
    assert command_line.main(["evaluate", "d1", *words, "--trust_torchscript"]) == 0
    evaluated = json.loads(Path("runs/d1/metrics.json").read_text())
    assert tested["protocol"]["protocol_hash"] == evaluated["protocol"]["protocol_hash"]
    figures = {key: value for key, value in tested.items() if key.startswith("quick_")}
    assert figures
    assert figures == pytest.approx({key: evaluated[key] for key in figures}, rel=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_test_of_a_converted_var(
    tokenizer: VQVAE, capsys, monkeypatch, tmp_path: Path
):
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))
    words = [w for k, v in evaluation_words().items() for w in (f"--model.evaluation.{k}", v)]
    words += ["--model.evaluation.batch_size", "5", "--gpus", "0"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    source = Path(varlit.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "varlit", "var", "test", "--name", "d1", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)},
        **{"capture_output": True, "text": True, "timeout": 300, "check": False},
    )
    assert done.returncode == 0, done.stderr
    protocol = json.loads(Path("runs/d1/metrics.json").read_text())["protocol"]
    assert (protocol["num_processes"], protocol["num_images"]) == (2, 20)


def test_a_var_of_unknown_data_is_not_validated_and_one_without_tokenizer_not_tested(
    tokenizer: VQVAE, capsys
):
    assert command_line.main(["var", "validate", "--name", "d1"]) == 2
    assert "name a token cache with --data.tokens" in capsys.readouterr().err
    assert command_line.main(["tokenizer", "test", "--name", "d1"]) == 2
    assert "holds a var, not a model of stage tokenizer" in capsys.readouterr().err
    save_var(VAR(VARConfig(depth=1, width=32, num_heads=2), SMALL, 10), None, Path("runs/alone"))
    assert command_line.main(["var", "test", "--name", "alone", "--gpus", "0"]) == 2
    assert "holds no tokenizer" in capsys.readouterr().err


def test_every_field_of_the_shape_is_a_flag(tokenizer: VQVAE):
    config = model_config(Path("runs/tok"))
    assert config is not None
    words = words_instead_of_a_recipe("tokenizer", config, Path("runs/tok"))
    for field in SMALL.to_dict():
        assert f"--model.tokenizer.{field}" in words


def test_a_run_and_an_empty_folder_are_not_taken_for_converted(tokenizer: VQVAE):
    assert model_config(Path("runs/none")) is None
    Path("runs/tok/fit.yaml").write_text("{}")
    assert model_config(Path("runs/tok")) is None
    Path("runs/d1/config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        model_config(Path("runs/d1"))
