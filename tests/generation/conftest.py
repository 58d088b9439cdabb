"""A tokenizer and a transformer that disagree with chance: loud weights, open gates."""

import pytest
import torch

from varlit.generation.sampler import Sampler
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=24,
    codebook_dim=8,
    scales=(1, 2, 4),
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["adaln", "shared_adaln"])
def sampler(request):
    tokenizer = VQVAE(TOKENIZER).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    config = VARConfig(depth=2, width=32, num_heads=4, shared_adaln=request.param)
    var = VAR(config, TOKENIZER, num_classes=3).eval()
    for parameter in var.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Sampler(var, tokenizer)
