from collections import Counter

import pytest
import torch

from varlit.ops.counting import attainable_usage, code_counts, code_usage, perplexity
from varlit.ops.scales import Scales

SCALES = Scales((1, 2, 3))
NUM_CODES = 7


def test_codes_are_counted_scale_by_scale():
    tokens = torch.randint(NUM_CODES, (11, SCALES.num_tokens))
    counts = code_counts(tokens, SCALES, NUM_CODES)
    assert counts.shape == (3, NUM_CODES)
    for k, part in enumerate(SCALES.split(tokens)):
        seen = Counter(part.flatten().tolist())
        assert counts[k].tolist() == [seen[code] for code in range(NUM_CODES)]


def test_counts_of_batches_add_up():
    a, b = torch.randint(NUM_CODES, (2, 5, SCALES.num_tokens))
    together = code_counts(torch.cat((a, b)), SCALES, NUM_CODES)
    apart = code_counts(a, SCALES, NUM_CODES) + code_counts(b, SCALES, NUM_CODES)
    assert torch.equal(together, apart)


def test_usage_is_the_share_of_codes_that_were_hit():
    counts = torch.tensor([[0, 3, 1, 0], [0, 0, 0, 0], [1, 1, 1, 9]])
    assert code_usage(counts).tolist() == [0.5, 0.0, 1.0]


def test_perplexity_counts_codes_in_equal_use():
    counts = torch.tensor([[5, 5, 5, 5], [0, 9, 0, 0], [2, 2, 0, 0], [3, 1, 0, 0]])
    uneven = 2.0 ** (2 - 0.75 * torch.tensor(3.0).log2().item())  # entropy of (3/4, 1/4) in bits
    assert perplexity(counts).tolist() == pytest.approx([4.0, 1.0, 2.0, uneven])


def test_no_set_of_images_can_use_more_than_is_attainable():
    attainable = attainable_usage(SCALES, 1, NUM_CODES)
    assert attainable.tolist() == pytest.approx([1 / 7, 4 / 7, 1.0])
    all_different = torch.arange(SCALES.num_tokens)[None] % NUM_CODES
    reached = code_usage(code_counts(all_different, SCALES, NUM_CODES))
    torch.testing.assert_close(reached, attainable)
    assert attainable_usage(SCALES, 10**9, NUM_CODES).tolist() == [1.0, 1.0, 1.0]
