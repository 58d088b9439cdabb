"""The verbs of a trained VAR on the raster-scan baseline."""

from dataclasses import replace

import pytest
import torch

from varlit.checkpoints.official import save_official
from varlit.checkpoints.pretrained import PretrainedVAR, load
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_var, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=8,
    codebook_dim=4,
    scales=(4,),
)
SHAPE = VARConfig(depth=1, width=8, num_heads=1, order="raster")


@pytest.fixture
def raster(tmp_path):
    save_var(VAR(SHAPE, TOKENIZER, 2), VQVAE(TOKENIZER), tmp_path / "scan", ["cat", "dog"])
    return load(tmp_path / "scan")


def test_it_is_loaded_sampled_and_edited_like_any_other(raster):
    assert isinstance(raster, PretrainedVAR)
    images, tokens = raster.sample([0, 1, None], seed=3, guidance="constant", return_tokens=True)
    assert (images.shape, tokens.shape) == ((3, 3, 8, 8), (3, 16))
    again = raster.sample([0, 1, None], seed=3, guidance="constant", batch_size=1)
    torch.testing.assert_close(again, images, atol=1e-4, rtol=0)
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    edited = raster.edit(images, mask, [0, 1, None], seed=4)
    assert edited.shape == images.shape
    assert torch.isfinite(edited).all()


def test_the_official_code_has_no_place_for_it(raster, tmp_path):
    with pytest.raises(UserError, match=r"no var\.order raster"):
        save_official(load_var(tmp_path / "scan").var, tmp_path / "official.pth")
    plain = VAR(replace(SHAPE, order="next_scale"), TOKENIZER, 2)
    assert save_official(plain, tmp_path / "official.pth") > 0
