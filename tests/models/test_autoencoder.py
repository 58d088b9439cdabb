import pytest
import torch
from torch.nn import functional

from varlit.models.autoencoder import (
    Decoder,
    Downsample,
    Encoder,
    ResidualBlock,
    SpatialAttention,
    Upsample,
)
from varlit.models.config import TokenizerConfig


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2)])
def test_decoder_undoes_the_shape_of_the_encoder(multipliers):
    config = TokenizerConfig(
        channels=32,
        channel_multipliers=multipliers,
        num_res_blocks=1,
        codebook_dim=5,
        scales=(1, 4),
    )
    images = torch.randn(2, 3, config.image_size, config.image_size)
    features = Encoder(config)(images)
    assert features.shape == (2, 5, 4, 4)
    assert Decoder(config)(features).shape == images.shape


def test_attention_lives_at_the_lowest_resolution_only():
    config = TokenizerConfig(channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=2)
    for network, lowest in ((Encoder(config), 2), (Decoder(config), 0)):
        for i, level in enumerate(network.levels):
            found = [isinstance(layer, SpatialAttention) for layer in level]
            assert any(found) == (i == lowest)
    assert [len(level) for level in Decoder(config).levels] == [6, 3, 3], "one block more"


def test_spatial_attention_is_softmax_attention_over_all_positions():
    layer = SpatialAttention(32, TokenizerConfig())
    x = torch.randn(2, 32, 3, 3)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # (B, C, 9)
    weights = (q.transpose(1, 2) @ k / 32**0.5).softmax(dim=-1)  # (B, query, key)
    attended = (v @ weights.transpose(1, 2)).unflatten(2, (3, 3))
    torch.testing.assert_close(layer(x), x + layer.projection(attended), atol=1e-5, rtol=1e-5)


def test_downsampling_pads_on_the_right_and_below_only():
    layer = Downsample(1)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    shape = layer(x) - layer(torch.zeros_like(x))
    # The first output's window starts at the first pixel, so only its first weight is met.
    torch.testing.assert_close(shape[0, 0, 0, 0], layer.conv.weight[0, 0, 0, 0])
    assert shape.count_nonzero() == 1


def test_upsampling_repeats_and_then_smooths():
    layer = Upsample(3)
    x = torch.randn(1, 3, 2, 2)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x), layer.conv(repeated))


def test_a_residual_block_leaves_its_input_untouched():
    block, x = ResidualBlock(32, 64, TokenizerConfig()), torch.randn(1, 32, 4, 4)
    before = x.clone()
    norm1, norm2 = (
        lambda x, n=n: functional.group_norm(x, 32, n.weight, n.bias, 1e-6)
        for n in (block.norm1, block.norm2)
    )
    h = block.conv1(functional.silu(norm1(x)))
    expected = block.shortcut(x) + block.conv2(functional.silu(norm2(h)))
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, before), "the activations work in place, on the norm's output only"
