import pytest
import torch

from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1,),
    num_res_blocks=1,
    codebook_size=8,
    codebook_dim=4,
    scales=(1, 2),
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def runs(tmp_path):
    """A folder of runs: `tok`, `d1` and `new`, which has nothing yet."""
    save_tokenizer(VQVAE(TOKENIZER), tmp_path / "tok")
    var = VAR(VARConfig(depth=1, width=8, num_heads=1), TOKENIZER, 2)
    save_var(var, tmp_path / "tok", tmp_path / "d1", ["cat", "dog"])
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    return tmp_path
