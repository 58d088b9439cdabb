"""A converted tokenizer serves the verbs of its stage without a recipe or a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from varlit.cli import main as command_line
from varlit.cli.converted import model_config, words_instead_of_a_recipe
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


def test_a_var_is_sent_to_the_verb_that_measures_it(tokenizer: VQVAE, capsys):
    assert command_line.main(["var", "test", "--name", "d1"]) == 2
    assert "varlit evaluate d1" in capsys.readouterr().err
    assert command_line.main(["tokenizer", "test", "--name", "d1"]) == 2
    assert "holds a var, not a model of stage tokenizer" in capsys.readouterr().err


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
