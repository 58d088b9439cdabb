"""The formulas against torch's own counter and against the official parameter counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.costs import (
    TransformerShape,
    attended_pairs,
    cache_bytes,
    key_value_bytes,
    transformer_costs,
)
from varlit.ops.scales import Scales

TOKENIZER = TokenizerConfig(
    channels=32, channel_multipliers=(1,), codebook_size=24, codebook_dim=8, scales=(1, 2, 4)
)
CONFIG = VARConfig(depth=2, width=32, num_heads=4, mlp_ratio=3)
SHAPE = TransformerShape(2, 32, 96, 24, Scales(TOKENIZER.scales))
SIDES_512_PX = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def counted(run):
    # The plain kernel is matrix products, which the counter knows on every torch.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def var():
    return VAR(CONFIG, TOKENIZER, num_classes=3).eval()


def input_projection(num_tokens):
    """The one product that the formulas leave out, as it is 1 / (12 depth) of the head."""
    return 2 * TOKENIZER.codebook_dim * CONFIG.resolved_width * num_tokens


def test_sampling_one_image_costs_what_the_formula_says(var):
    def sample():
        state = var.begin(torch.tensor([1]))
        var.advance(state)
        for length in var.scales.lengths[1:]:
            var.advance(state, torch.zeros(1, length, TOKENIZER.codebook_dim))

    costs = transformer_costs(SHAPE)
    assert counted(sample) == costs.forward + input_projection(20)
    assert costs.sampling(is_guided=False) == costs.forward
    assert costs.sampling() == 2 * costs.forward


def test_a_training_pass_differs_by_the_masked_pairs_only(var):
    teacher = torch.zeros(1, 20, TOKENIZER.codebook_dim)
    masked_pairs = 21**2 - attended_pairs(SHAPE.steps)
    dense = 4 * SHAPE.width * masked_pairs * SHAPE.depth
    costs = transformer_costs(SHAPE)
    found = counted(lambda: var(torch.tensor([0]), teacher))
    assert found == costs.forward + input_projection(20) + dense
    assert costs.training == 3 * costs.forward


@pytest.mark.parametrize("sides", [(3,), (1, 2, 4), (2, 3, 5, 8), TokenizerConfig.scales], ids=str)
def test_attended_pairs_are_those_of_the_mask(sides):
    scales = Scales(sides)
    assert attended_pairs(scales) == scales.block_causal_mask().sum().item()


def test_bytes_of_the_caches(var):
    state = var.begin(torch.tensor([1]))
    held = sum(cache.keys.nbytes + cache.values.nbytes for cache in state.caches)
    assert key_value_bytes(SHAPE, bytes_per_number=4) == held
    assert cache_bytes(SHAPE.steps, num_images=10, num_crops=3) == 10 * 3 * 21 * 2


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("config", "sides", "count"),
    [
        (VARConfig(depth=16), TokenizerConfig.scales, 310_283_520),
        (VARConfig(depth=20), TokenizerConfig.scales, 600_917_136),
        (VARConfig(depth=24), TokenizerConfig.scales, 1_033_399_360),
        (VARConfig(depth=30), TokenizerConfig.scales, 2_010_020_356),
        (VARConfig(depth=36, shared_adaln=True), SIDES_512_PX, 2_353_893_904),
    ],
    ids=["d16", "d20", "d24", "d30", "d36-s"],
)
def test_official_transformers_are_built_to_the_last_parameter(config, sides, count):
    with torch.device("meta"):
        assert num_parameters(VAR(config, TokenizerConfig(scales=sides), 1000)) == count


def test_the_official_tokenizer_is_built_to_the_last_parameter():
    with torch.device("meta"):
        assert num_parameters(VQVAE(TokenizerConfig())) == 108_948_355
