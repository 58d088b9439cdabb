import pytest
import torch

from varlit.errors import UserError
from varlit.metrics.codebook import CodebookUsage
from varlit.ops.scales import Scales

SCALES = Scales((1, 2, 4))
CODES = 8


def pyramids(num_images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (num_images, SCALES.num_tokens), generator=generator)


def report_of(*batches: torch.Tensor):
    usage = CodebookUsage(SCALES, CODES)
    for batch in batches:
        usage.update(batch)
    return usage.compute()


def test_usage_and_perplexity_of_a_known_pyramid():
    tokens = torch.zeros(1, SCALES.num_tokens, dtype=torch.int64)
    tokens[:, SCALES.token_slice(1)] = torch.tensor([0, 1, 2, 3])
    tokens[:, SCALES.token_slice(2)] = torch.arange(16) % 2
    report = report_of(tokens)
    assert report.usage_by_scale.tolist() == pytest.approx([1 / 8, 4 / 8, 2 / 8])
    assert report.perplexity_by_scale.tolist() == pytest.approx([1, 4, 2])
    assert report.attainable_by_scale.tolist() == pytest.approx([1 / 8, 4 / 8, 1])
    assert report.usage == pytest.approx(4 / 8)
    assert report.num_images == 1


def test_batches_in_any_order_equal_the_whole():
    tokens = pyramids(10)
    whole, parts = report_of(tokens), report_of(tokens[7:], tokens[:3], tokens[3:7])
    assert torch.equal(whole.usage_by_scale, parts.usage_by_scale)
    assert torch.equal(whole.perplexity_by_scale, parts.perplexity_by_scale)
    assert whole.num_images == parts.num_images == 10


def test_usage_never_exceeds_what_is_attainable():
    for num_images in (1, 2, 5):
        report = report_of(pyramids(num_images, seed=num_images))
        assert (report.usage_by_scale <= report.attainable_by_scale).all()


def test_perplexity_never_exceeds_the_codes_that_are_attainable():
    # Codes all different: the most that so few tokens can reach, at the scales that hold 8 or less.
    tokens = torch.arange(SCALES.num_tokens)[None] % CODES
    report = report_of(tokens)
    torch.testing.assert_close(report.usage_by_scale, report.attainable_by_scale)
    torch.testing.assert_close(report.perplexity_by_scale, CODES * report.attainable_by_scale)
    for seed in range(5):
        report = report_of(pyramids(3, seed))
        reach = CODES * report.attainable_by_scale
        assert (report.perplexity_by_scale <= reach * (1 + 1e-6)).all()


def test_an_empty_count_is_refused():
    with pytest.raises(UserError, match="no images"):
        report_of()
