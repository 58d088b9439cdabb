"""Networks that are small, and lively enough for their parts to matter."""

import pytest
import torch

from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = {
    "channels": 32,
    "channel_multipliers": (1, 1),
    "num_res_blocks": 1,
    "codebook_size": 24,
    "codebook_dim": 8,
    "scales": (1, 2, 4),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def make_tokenizer():
    """A tokenizer of 8x8 px images whose codes are as large as its features."""

    def make(**changes):
        tokenizer = VQVAE(TokenizerConfig(**(TOKENIZER | changes))).eval()
        torch.nn.init.normal_(tokenizer.quantizer.codebook.weight, std=0.3)
        return tokenizer

    return make


@pytest.fixture
def make_var():
    """A transformer of 21 tokens and three classes, with open gates and a loud head."""

    def make(scales=TOKENIZER["scales"], **changes):
        config = {"depth": 2, "width": 32, "num_heads": 4, "drop_path": 0.0, "class_dropout": 0.0}
        var = VAR(
            VARConfig(**(config | changes)), TokenizerConfig(**(TOKENIZER | {"scales": scales})), 3
        )
        for name, parameter in var.named_parameters():
            if not name.endswith("log_scale"):
                torch.nn.init.normal_(parameter, std=0.3)
        return var.eval()

    return make
