import math

import pytest
import torch
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.losses import next_scale
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
    terms = next_scale_loss(logits, tokens, SCALES, with_details=True)
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
    terms = next_scale_loss(logits, tokens, SCALES, with_details=True)
    assert terms.loss.dtype == torch.float32
    assert not terms.loss_by_scale.requires_grad
    terms.loss.backward()
    expected = (logits.detach().float().softmax(-1) - F.one_hot(tokens, CODES)) / tokens.numel()
    torch.testing.assert_close(logits.grad, expected.bfloat16())


def test_tokens_of_another_schedule_are_refused():
    with pytest.raises(UserError, match="14 tokens"):
        next_scale_loss(torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64), SCALES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
def test_loss_and_gradient_equal_plain_cross_entropy_whatever_the_chunks(
    batch, smoothing, rows_at_once, monkeypatch
):
    monkeypatch.setitem(next_scale.CHUNK_ELEMENTS, "cpu", rows_at_once * CODES)
    logits, tokens = batch
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    terms = next_scale_loss(ours, tokens, SCALES, label_smoothing=smoothing)
    expected = F.cross_entropy(plain.transpose(1, 2), tokens, label_smoothing=smoothing)
    torch.testing.assert_close(terms.loss, expected)
    (3 * terms.loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_a_share_of_a_bf16_gradient_is_not_rounded_first(batch):
    logits, tokens = batch
    whole, third = (logits.bfloat16().requires_grad_() for _ in range(2))
    next_scale_loss(whole, tokens, SCALES).loss.backward()
    (next_scale_loss(third, tokens, SCALES).loss / 3).backward()  # one of three micro-batches
    torch.testing.assert_close(third.grad, (whole.grad.float() / 3).bfloat16())


def test_extreme_logits_cost_what_they_should():
    logits = torch.zeros(1, SCALES.num_tokens, CODES)
    logits[..., 0] = 500.0
    tokens = torch.ones(1, SCALES.num_tokens, dtype=torch.int64)
    assert next_scale_loss(logits, tokens, SCALES).loss.item() == pytest.approx(500)


def test_the_callers_logits_are_left_alone(batch):
    logits, tokens = batch
    before = logits.clone().requires_grad_()
    next_scale_loss(before, tokens, SCALES).loss.backward()
    assert torch.equal(before.detach(), logits)


def test_nothing_of_the_size_of_fp32_logits_is_kept_for_the_backward_pass(batch):
    logits = batch[0].bfloat16().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        next_scale_loss(logits, batch[1], SCALES)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.bfloat16, logits.numel())]


@pytest.mark.gpu
def test_the_loss_never_waits_for_the_gpu(batch):
    logits, tokens = (tensor.cuda() for tensor in batch)
    logits = logits.bfloat16().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        next_scale_loss(logits, tokens, SCALES, 0.1, with_details=True).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_entropy_is_that_of_the_predictions() -> None:
    logits = torch.randn(3, SCALES.num_tokens, 7)
    tokens = torch.randint(7, (3, SCALES.num_tokens))
    terms = next_scale_loss(logits, tokens, SCALES, with_details=True)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    for k, part in enumerate(SCALES.split(expected)):
        assert terms.entropy_by_scale is not None
        torch.testing.assert_close(terms.entropy_by_scale[k], part.mean())
    uniform = next_scale_loss(torch.zeros_like(logits), tokens, SCALES, with_details=True)
    assert uniform.entropy_by_scale is not None
    torch.testing.assert_close(
        uniform.entropy_by_scale, torch.full((SCALES.num_scales,), math.log(7))
    )
    sure = torch.full_like(logits, -math.inf)
    sure[..., 0] = 0
    certain = next_scale_loss(sure, torch.zeros_like(tokens), SCALES, with_details=True)
    assert certain.entropy_by_scale is not None
    assert certain.entropy_by_scale.abs().max() == 0, "a code that cannot come adds nothing"
