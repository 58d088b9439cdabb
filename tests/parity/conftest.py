"""What the official code made: a small cut in tests/fixtures, the whole beside the repository."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from varlit.checkpoints.official import official_tokenizer_name, official_var_name
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"
FIXTURE = ROOT / "tests" / "fixtures" / "official.pt"


@pytest.fixture(scope="session")
def official():
    """The cut that is committed; tests/fixtures/make_official.py made it."""
    return torch.load(FIXTURE, weights_only=True)


@pytest.fixture(scope="session")
def official_var():
    """The transformer's cut, from the same file."""
    return torch.load(FIXTURE.with_name("official_var.pt"), weights_only=True)


def read(name):
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"needs the reference tensors: {path}")
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="session")
def case():
    """One case in full: images, tokens, logits, gradients, samples."""
    return read("a_base256/ref.pt")


@pytest.fixture(scope="session")
def tokenizer(case):
    weights = read("a_base256/vae_sd.pt")
    c = case["config"]
    config = TokenizerConfig(
        channels=c["ch"],
        codebook_size=c["V"],
        codebook_dim=c["Cvae"],
        scales=tuple(c["patch_nums"]),
        num_phi=c["share_quant_resi"],
    )
    network = VQVAE(config)
    names = {name: official_tokenizer_name(name, config) for name in network.state_dict()}
    assert set(weights) - set(names.values()) == {"quantize.ema_vocab_hit_SV"}, "a statistic"
    network.load_state_dict({name: weights[there] for name, there in names.items()})
    return network.eval()


@pytest.fixture
def make_var(case, tokenizer):
    """A fresh copy of the transformer, without its random drops."""
    weights = read("a_base256/var_sd.pt")
    c = case["config"]

    def make():
        config = VARConfig(depth=c["depth"], drop_path=0.0, class_dropout=0.0)
        var = VAR(config, tokenizer.config, c["num_classes"])
        names = {name: official_var_name(name) for name in var.state_dict()}
        buffers = {"lvl_1L", "attn_bias_for_masking"}
        buffers |= {f"blocks.{i}.attn.zero_k_bias" for i in range(c["depth"])}
        assert set(weights) - set(names.values()) == buffers, "constants"
        var.load_state_dict({name: weights[there] for name, there in names.items()})
        return var.eval()

    return make


@pytest.fixture(scope="session")
def tokens(case):
    return torch.cat(case["idx_Bl"], dim=1)


@pytest.fixture
def close():
    """Compare with the tolerances of the reference's README."""

    def check(found, expected, atol, rtol=0.0):
        torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)

    return SimpleNamespace(
        logits=lambda a, b: check(a, b, 2e-4),
        images=lambda a, b: check(a, b, 1e-4),
        features=lambda a, b: check(a, b, 1e-4),
        loss=lambda a, b: check(torch.as_tensor(a), torch.as_tensor(b), 0.0, 1e-5),
    )
