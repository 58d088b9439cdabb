"""What is prepared once for all steps changes no logits."""

from dataclasses import replace

import pytest
import torch

from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR

TOKENIZER = TokenizerConfig(
    channels=32, channel_multipliers=(1, 1), codebook_size=24, codebook_dim=8, scales=(1, 2, 3)
)
LABELS = torch.tensor([2, 0, 3])


@pytest.fixture(params=[False, True], ids=["adaln", "shared_adaln"])
def var(request):
    config = VARConfig(depth=2, width=32, num_heads=4, shared_adaln=request.param)
    var = VAR(config, TOKENIZER, num_classes=3).eval()
    for parameter in var.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return var


def logits_of(var, state):
    inputs = torch.randn(3, 13, 8, generator=torch.Generator().manual_seed(1))
    parts = [var.advance(state), var.advance(state, inputs[:, :4])]
    return torch.cat([*parts, var.advance(state, inputs[:, 4:])], dim=1)


@torch.no_grad()
def test_a_bias_that_is_joined_once_is_that_of_every_step(var):
    joined, plain = var.begin(LABELS), var.begin(LABELS)
    plain.caches = [replace(cache, qkv_bias=None) for cache in plain.caches]
    assert all(cache.qkv_bias is not None for cache in joined.caches)
    assert torch.equal(logits_of(var, joined), logits_of(var, plain))


@torch.no_grad()
def test_a_table_of_all_classes_gives_the_logits_of_each(var):
    table = var.read_classes()
    assert table.start.shape == (4, 32), "the unconditional class is in it"
    found = logits_of(var, var.begin(LABELS, table))
    torch.testing.assert_close(found, logits_of(var, var.begin(LABELS)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_the_table_are_what_their_classes_say(var):
    rows, read = var.read_classes().rows(LABELS), var.read_classes(LABELS)
    torch.testing.assert_close(rows.start, read.start)
    for found, expected in zip(rows.modulations, read.modulations, strict=True):
        torch.testing.assert_close(vars(found), vars(expected))
    torch.testing.assert_close(rows.head, read.head)


@torch.no_grad()
def test_nothing_is_prepared_again_on_the_way(var, monkeypatch):
    state = var.begin(LABELS)

    def never(*_):
        raise AssertionError("prepared again")

    for block in var.layers:
        monkeypatch.setattr(block.attention, "qkv_bias", never)
        monkeypatch.setattr(block, "modulation", never)
    assert logits_of(var, state).shape == (3, 14, 24)
