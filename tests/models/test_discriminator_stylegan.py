import torch

from varlit.models.discriminator_config import DiscriminatorConfig
from varlit.models.discriminator_stylegan import (
    BlurPool,
    DownBlock,
    StyleGANDiscriminator,
    append_minibatch_std,
)


def small(**fields):
    torch.manual_seed(0)
    config = DiscriminatorConfig(kind="stylegan", channels=32, num_layers=2, **fields)
    return StyleGANDiscriminator(config)


def test_each_layer_halves_the_side_odd_ones_downwards():
    assert small()(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 8, 8)
    assert small()(torch.zeros(1, 3, 36, 23)).shape == (1, 1, 9, 5)


def test_blurring_keeps_flat_colours_and_removes_the_finest_stripes():
    pool = BlurPool(2)
    torch.testing.assert_close(pool(torch.full((1, 2, 8, 8), 0.7)), torch.full((1, 2, 4, 4), 0.7))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 2, 8, 8)
    inner = pool(stripes)[..., 1:-1]  # what plain striding would turn into a flat colour
    torch.testing.assert_close(inner, torch.zeros_like(inner))


def test_the_filter_is_no_part_of_a_checkpoint():
    assert not [name for name in small().state_dict() if "taps" in name]


def test_a_block_neither_amplifies_nor_damps_at_the_start():
    torch.manual_seed(0)
    deviation = DownBlock(64, 128)(torch.randn(8, 64, 16, 16)).std()
    assert 0.4 < deviation < 1.2


def test_minibatch_std_tells_equal_images_from_different_ones():
    x = torch.randn(8, 5, 3, 3)
    x[:4] = x[0]
    added = append_minibatch_std(x)
    assert added.shape == (8, 6, 3, 3)
    assert torch.equal(added[:, :5], x)
    assert (added[:4, 5] < 1e-3).all()
    expected = x[4:].std(dim=0, correction=0).mean()
    torch.testing.assert_close(added[4:, 5], expected.expand(4, 3, 3))
    assert append_minibatch_std(x[:3]).shape == (3, 6, 3, 3)


def test_minibatch_std_ties_an_image_to_its_neighbours_only_when_asked_for():
    a, b = torch.randn(2, 4, 3, 32, 32)
    b[0] = a[0]
    for asked in (False, True):
        network = small(minibatch_std=asked)
        torch.manual_seed(1)
        together = network(a)[0], network(b)[0]
        assert torch.allclose(*together, atol=1e-6) is not asked
