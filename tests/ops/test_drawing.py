import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varlit.ops import drawing
from varlit.ops.drawing import draw_exactly_at, draw_sorted, filter_exactly
from varlit.ops.filtering import draw, draw_at, filter_logits

TOP_PS = [0.0, 1e-9, 0.04, 0.3, 0.5, 0.96, 1 - 1e-7, 1.0]
KINDS = ["smooth", "tied", "holes", "bf16", "flat", "sharp"]


@st.composite
def cases(draw):
    """Logits (2, 3, V) of a kind that is hard for a threshold, and settings."""
    size = draw(st.sampled_from([1, 2, 7, 8, 24, 33, 64, 200, 256]))
    kind, seed = draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**20))
    top_k = draw(st.integers(0, size + 1))
    return hard_logits(kind, size, seed), top_k, draw(st.sampled_from(TOP_PS))


def hard_logits(kind, size, seed):
    logits = 3 * torch.randn(2, 3, size, generator=torch.Generator().manual_seed(seed))
    if kind == "tied":
        logits = logits.div(3).round()
    if kind == "bf16":
        logits = logits.bfloat16().float()
    if kind == "flat":
        logits = torch.zeros_like(logits)
    if kind == "sharp":
        logits = 60 * logits
    if kind == "holes":
        logits = logits.round().masked_fill(logits.abs() > 2, -torch.inf)
        logits[..., seed % size] = 0.0  # never all of them
    return logits


@pytest.fixture(params=["numpy", "torch", "any device"])
def every_way(request, monkeypatch):
    monkeypatch.setattr(drawing, "MAX_NUMPY_THREADS", 10**9 if request.param == "numpy" else 0)
    if request.param == "any device":
        monkeypatch.setattr(drawing, "_is_on_cpu", lambda logits: False)


@pytest.mark.parametrize("threads", [10**9, 0], ids=["numpy", "torch"])
@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_filtering_by_thresholds_is_the_plain_filter_bit_for_bit(threads, case):
    logits, top_k, top_p = case
    before = logits.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "MAX_NUMPY_THREADS", threads)
        found = filter_exactly(logits, top_k, top_p)
    assert torch.equal(found, filter_logits(logits, top_k, top_p))
    assert torch.equal(logits, before), "the caller's logits are left alone"


@pytest.mark.usefixtures("every_way")
def test_every_way_filters_alike():
    for kind in KINDS:
        for top_k, top_p in ((5, 0.5), (20, 0.96), (0, 0.7), (3, 0.0)):
            logits = hard_logits(kind, 64, top_k)
            found = filter_exactly(logits, top_k, top_p)
            assert torch.equal(found, filter_logits(logits, top_k, top_p))


@settings(max_examples=150, deadline=None)
@given(case=cases(), place=st.floats(0, 1, exclude_max=True, width=32))
def test_drawing_by_blocks_is_plain_drawing_bit_for_bit(case, place):
    logits = filter_logits(*case)
    cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    # On an edge, beside it, at the ends, anywhere.
    edge = cumulative[..., int(place * logits.shape[-1])].float()
    for uniform in (edge, edge.nextafter(edge + 1), 0 * edge, 0 * edge + place):
        inside = uniform.clamp(max=1 - 2**-24)
        assert torch.equal(draw_exactly_at(logits, inside), draw_at(logits, inside))


def test_numbers_near_an_edge_are_looked_at_again(monkeypatch):
    asked = []

    def noting(logits, uniform):
        asked.append(logits.shape[1])
        return draw_at(logits, uniform)

    monkeypatch.setattr(drawing, "draw_at", noting)
    logits = torch.zeros(1, 4, 64)
    draw_exactly_at(logits, torch.tensor([[0.5, 0.5 + 1 / 128, 0.25 + 1 / 128, 1 / 64]]))
    assert asked == [2], "0.5 and 1/64 are edges of 64 equal codes"


def test_what_is_no_number_goes_the_plain_way():
    logits = torch.full((1, 2, 64), torch.nan)
    uniform = torch.rand(1, 2)
    assert torch.equal(draw_exactly_at(logits, uniform), draw_at(logits, uniform))


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 20, 33])
def test_sorted_drawing_has_the_distribution_of_the_filtered_logits(kind, top_k, top_p):
    logits, count = hard_logits(kind, 33, 3)[:1, :1], 4000
    probability = filter_logits(logits, top_k, top_p).softmax(-1)[0, 0]
    uniform = ((torch.arange(count) + 0.5) / count)[None]
    drawn = draw_sorted(logits.expand(1, count, -1), uniform, top_k, top_p)
    share = torch.bincount(drawn[0], minlength=33) / count
    torch.testing.assert_close(share, probability, atol=1.5 / count, rtol=1e-4)
    assert (share[probability == 0] == 0).all(), "what the filter excludes is never drawn"


@pytest.mark.parametrize("uniform", [0.0, 1e-38, 0.5, 1 - 2**-24, 1.0])
def test_no_number_however_extreme_draws_an_excluded_code(uniform):
    for seed, kind in enumerate(KINDS):
        logits, top_k = hard_logits(kind, 64, seed), 1 + 4 * seed
        drawn = draw_sorted(logits, torch.full((2, 3), uniform), top_k, 0.9)
        kept = filter_logits(logits, top_k, 0.9)
        assert (kept.gather(-1, drawn[..., None]) > -torch.inf).all()


def test_a_sorted_draw_depends_on_its_own_number_alone():
    logits, uniform = torch.randn(4, 6, 40), torch.rand(4, 6)
    whole = draw_sorted(logits, uniform, 12, 0.9)
    part = draw_sorted(logits[2:3, 1:4].contiguous(), uniform[2:3, 1:4], 12, 0.9)
    assert torch.equal(part, whole[2:3, 1:4])


def test_random_numbers_give_both_ways_the_same_shares():
    # Chi-square of 20,000 tokens over 24 codes; 70 is far beyond chance (p = 1e-6) for 23 degrees.
    logits, count = torch.randn(1, 1, 24), 20_000
    many = logits.expand(1, count, -1)
    uniform = torch.rand(1, count, generator=torch.Generator().manual_seed(1))
    expected = filter_logits(logits, 20, 0.95).softmax(-1)[0, 0] * count
    kept = expected > 0
    generator = torch.Generator().manual_seed(2)
    filtered = filter_exactly(many, 20, 0.95)
    for drawn in (draw_sorted(many, uniform, 20, 0.95), draw(filtered, generator)):
        found = torch.bincount(drawn[0], minlength=24)
        assert found[~kept].sum() == 0
        assert ((found - expected)[kept] ** 2 / expected[kept]).sum() < 70


@pytest.mark.gpu
def test_a_gpu_filters_and_draws_as_the_plain_definition_does():
    logits = 3 * torch.randn(4, 64, 4096, device="cuda")
    uniform = torch.rand(4, 64, device="cuda")
    for top_k, top_p in ((900, 0.96), (0, 0.96), (900, 0.0), (1, 0.5)):
        filtered = filter_exactly(logits, top_k, top_p)
        assert torch.equal(filtered, filter_logits(logits, top_k, top_p))
        assert torch.equal(draw_exactly_at(filtered, uniform), draw_at(filtered, uniform))
        drawn = draw_sorted(logits, uniform, top_k, top_p)
        assert (filtered.gather(-1, drawn[..., None]) > -torch.inf).all()
