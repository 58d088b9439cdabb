import pytest
import torch

from varlit.ops.filtering import draw, draw_at, filter_logits, guidance_strength, guide

NUM_CODES = 12


def kept(logits, **settings):
    return filter_logits(logits, **settings) > -torch.inf


def test_nothing_is_filtered_when_both_are_off():
    logits = torch.randn(2, 3, NUM_CODES)
    assert torch.equal(filter_logits(logits), logits)
    assert torch.equal(filter_logits(logits, top_k=NUM_CODES + 5, top_p=1.0), logits)


@pytest.mark.parametrize("top_k", [1, 3, NUM_CODES - 1])
def test_top_k_keeps_the_k_largest_as_they_are(top_k):
    logits = torch.randn(2, 3, NUM_CODES)
    filtered = filter_logits(logits, top_k=top_k)
    for row, out in zip(logits.view(-1, NUM_CODES), filtered.view(-1, NUM_CODES), strict=True):
        largest = set(sorted(range(NUM_CODES), key=lambda i: -row[i].item())[:top_k])
        for code in range(NUM_CODES):
            assert out[code] == (row[code] if code in largest else -torch.inf)


def test_ties_with_the_kth_are_kept():
    logits = torch.tensor([[[3.0, 1.0, 1.0, 1.0, 0.0]]])
    assert kept(logits, top_k=2).flatten().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.7, 0.95])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p):
    logits = 2 * torch.randn(4, 5, NUM_CODES, dtype=torch.float64)
    mask = kept(logits, top_p=top_p).view(-1, NUM_CODES)
    for row, chosen in zip(logits.softmax(-1).view(-1, NUM_CODES), mask, strict=True):
        descending = row.argsort(descending=True).tolist()
        size = 1
        while row[descending[:size]].sum() < top_p:
            size += 1
        assert set(chosen.nonzero().flatten().tolist()) == set(descending[:size])


def test_top_p_never_empties_a_row():
    flat = torch.zeros(1, 1, NUM_CODES)
    sharp = torch.full((1, 1, NUM_CODES), -100.0).index_fill(-1, torch.tensor([4]), 100.0)
    for logits in (flat, sharp):
        for top_p in (1e-9, 1e-3, 0.5, 1 - 1e-7):
            assert kept(logits, top_p=top_p).any()
    assert kept(sharp, top_p=1e-9).flatten().nonzero().item() == 4


def test_top_p_works_on_what_top_k_left():
    logits = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]]).log()
    # Of {0.4, 0.3} the first holds 4/7 > 0.5; of all four, 0.4 alone would not reach 0.5.
    assert kept(logits, top_k=2, top_p=0.5).flatten().tolist() == [True, False, False, False]
    assert kept(logits, top_p=0.5).flatten().tolist() == [True, True, False, False]


def excluded_and_not():
    logits = torch.tensor([-torch.inf, 0.5, -torch.inf, -torch.inf, 2.0, -1.0, -torch.inf])
    return logits, logits.softmax(-1)


def test_both_ways_of_drawing_follow_the_distribution_and_skip_the_excluded():
    logits, probability = excluded_and_not()
    count = 40_000
    many = logits.expand(1, count, -1)
    generator = torch.Generator().manual_seed(0)
    uniform = (torch.arange(count) / count)[None]
    for drawn, tolerance in ((draw(many, generator), 0.01), (draw_at(many, uniform), 1e-4)):
        assert drawn.shape == (1, count)
        share = torch.bincount(drawn[0], minlength=7) / count
        torch.testing.assert_close(share, probability, atol=tolerance, rtol=0)
        assert (share[probability == 0] == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1e-38, 0.5, 1 - 2**-24, 1.0])
def test_no_number_however_extreme_draws_an_excluded_code(uniform):
    for seed in range(20):
        logits = 4 * torch.randn(3, 50, 33, generator=torch.Generator().manual_seed(seed))
        logits = filter_logits(logits, top_k=1 + seed)
        drawn = draw_at(logits, torch.full((3, 50), uniform))
        assert (logits.gather(-1, drawn[..., None]) > -torch.inf).all()


def test_drawing_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 4, 3)
    uniform = torch.tensor([[0.0, 0.499, 0.501, 0.999]])
    assert draw_at(logits, uniform).tolist() == [[0, 0, 1, 2]]
    rising = draw_at(torch.randn(9).expand(1, 100, 9), torch.linspace(0, 0.999, 100)[None])
    assert (rising.diff() >= 0).all()


def test_a_draw_depends_on_its_own_number_alone():
    logits, uniform = torch.randn(4, 6, 10), torch.rand(4, 6)
    whole = draw_at(logits, uniform)
    assert torch.equal(draw_at(logits[2:3, 1:4], uniform[2:3, 1:4]), whole[2:3, 1:4])


def test_guidance_rises_linearly_to_its_scale_in_the_official_convention():
    strengths = [guidance_strength(1.5, k, 10) for k in range(10)]
    assert strengths == pytest.approx([1.5 * k / 9 for k in range(10)])
    assert guidance_strength(1.5, 0, 1) == 0.0
    assert [guidance_strength(3.0, k, 4, "constant") for k in range(4)] == [2.0] * 4


def test_guidance_moves_away_from_the_unconditional_logits():
    conditional, unconditional = torch.randn(2, 2, 3, 5)
    assert torch.equal(guide(conditional, unconditional, 0.0), conditional)
    torch.testing.assert_close(guide(conditional, unconditional, -1.0), unconditional)
    torch.testing.assert_close(guide(conditional, conditional, 7.0), conditional)
    moved = guide(conditional, unconditional, 0.5)
    torch.testing.assert_close(moved - conditional, 0.5 * (conditional - unconditional))
