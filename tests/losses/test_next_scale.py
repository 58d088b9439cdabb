import math

import pytest
import torch
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.losses.next_scale import next_scale_loss
from varlit.ops.scales import Scales

SCALES = Scales((1, 2, 3))
CODES = 11


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, SCALES.num_tokens, CODES, generator=generator)
    tokens = torch.randint(CODES, (5, SCALES.num_tokens), generator=generator)
    return logits, tokens


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_length_weighted_mean_of_the_scales(batch, smoothing):
    terms = next_scale_loss(*batch, SCALES, label_smoothing=smoothing)
    lengths = torch.tensor(SCALES.lengths)
    rebuilt = (lengths * terms.loss_by_scale).sum() / SCALES.num_tokens
    torch.testing.assert_close(rebuilt, terms.loss)


def test_loss_equals_plain_cross_entropy_and_each_scale_its_own(batch):
    logits, tokens = batch
    terms = next_scale_loss(logits, tokens, SCALES)
    torch.testing.assert_close(terms.loss, F.cross_entropy(logits.transpose(1, 2), tokens))
    for k in range(SCALES.num_scales):
        part = SCALES.token_slice(k)
        expected = F.cross_entropy(logits[:, part].transpose(1, 2), tokens[:, part])
        torch.testing.assert_close(terms.loss_by_scale[k], expected)


def test_equal_logits_cost_log_of_the_codebook_size():
    tokens = torch.zeros(2, SCALES.num_tokens, dtype=torch.int64)
    terms = next_scale_loss(torch.zeros(2, SCALES.num_tokens, CODES), tokens, SCALES)
    assert terms.loss.item() == pytest.approx(math.log(CODES), rel=1e-6)


def test_accuracy_counts_by_scale(batch):
    _, tokens = batch
    logits = F.one_hot(tokens, CODES).float()
    logits[:, SCALES.token_slice(2)] = 0
    logits[:, SCALES.token_slice(2), 0] = 1  # on the finest map always code 0
    terms = next_scale_loss(logits, tokens, SCALES, with_accuracy=True)
    share = (tokens[:, SCALES.token_slice(2)] == 0).float().mean()
    torch.testing.assert_close(terms.accuracy_by_scale, torch.stack([share * 0 + 1] * 2 + [share]))
    expected = (torch.tensor(SCALES.lengths) * terms.accuracy_by_scale).sum() / SCALES.num_tokens
    torch.testing.assert_close(terms.accuracy, expected)


def test_accuracy_is_computed_only_when_asked_for(batch):
    terms = next_scale_loss(*batch, SCALES)
    assert terms.accuracy is None
    assert terms.accuracy_by_scale is None


def test_only_the_loss_carries_gradients_and_bf16_logits_are_summed_in_fp32(batch):
    logits, tokens = batch
    logits = logits.bfloat16().requires_grad_()
    terms = next_scale_loss(logits, tokens, SCALES, with_accuracy=True)
    assert terms.loss.dtype == torch.float32
    assert not terms.loss_by_scale.requires_grad
    terms.loss.backward()
    expected = (logits.detach().float().softmax(-1) - F.one_hot(tokens, CODES)) / tokens.numel()
    torch.testing.assert_close(logits.grad, expected.bfloat16())


def test_tokens_of_another_schedule_are_refused():
    with pytest.raises(UserError, match="14 tokens"):
        next_scale_loss(torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64), SCALES)
