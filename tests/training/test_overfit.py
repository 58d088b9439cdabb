"""Each stage learns one batch by heart: nothing between images and weights is cut."""

import pytest
import torch
from torch.nn import functional

from varlit.data.digits import load_digits
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.losses.next_scale import next_scale_loss
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

SCALES = (1, 2, 4)
TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    codebook_size=64,
    codebook_dim=8,
    scales=SCALES,
)


@pytest.mark.slow
def test_the_tokenizer_reconstructs_one_batch():
    torch.manual_seed(0)
    images = load_digits(image_size=16).train_images[:8]
    network = VQVAE(TOKENIZER)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, betas=(0.5, 0.9))
    for _ in range(120):
        output = network(images)
        error = functional.mse_loss(output.reconstruction, images)
        loss = error + output.codebook_loss.mean() + 0.25 * output.commitment_loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reconstructed = network.eval().reconstruct(images)
    grey = images.mean(dim=0, keepdim=True)
    share = functional.mse_loss(reconstructed, images) / functional.mse_loss(
        grey.expand_as(images), images
    )
    assert share < 0.2, "of what the mean image leaves"
    prefix = network.decode_prefix(network.encode(images), 1)
    assert functional.mse_loss(prefix, images) > functional.mse_loss(reconstructed, images)


def test_the_transformer_learns_one_batch_by_heart_and_draws_it():
    torch.manual_seed(0)
    tokenizer = VQVAE(TOKENIZER)
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    config = VARConfig(depth=2, width=64, num_heads=2, drop_path=0.0, class_dropout=0.0)
    var = VAR(config, TOKENIZER, num_classes=8)
    tokens, labels = torch.randint(64, (8, 21)), torch.arange(8)
    inputs = tokenizer.teacher_inputs(tokens)
    optimizer = torch.optim.AdamW(var.parameters(), lr=1e-2)
    for _ in range(80):
        loss = next_scale_loss(var(labels, inputs), tokens, var.scales).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    greedy = SamplingSettings(cfg_scale=0.0, top_k=1, top_p=0.0)
    drawn = Sampler(var.eval(), tokenizer.eval()).draw(labels, greedy)
    assert (drawn.tokens == tokens).float().mean() > 0.99
