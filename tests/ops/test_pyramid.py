import pytest
import torch

from varlit.ops.pyramid import enlarge, shrink, to_map, to_sequence


@pytest.mark.parametrize("resize", [shrink, enlarge])
def test_full_size_is_the_identity(resize):
    f = torch.randn(1, 2, 4, 4)
    assert resize(f, 4) is f


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6])
def test_shrinking_averages_the_cells_under_each_output(side):
    f = torch.randn(2, 3, 6, 6)
    small = shrink(f, side)
    for y in range(side):
        for x in range(side):
            rows = slice(y * 6 // side, -(-(y + 1) * 6 // side))
            columns = slice(x * 6 // side, -(-(x + 1) * 6 // side))
            mean = f[:, :, rows, columns].mean(dim=(2, 3))
            torch.testing.assert_close(small[:, :, y, x], mean)


def cubic_weights(size, target):
    """Cubic convolution with a = -0.75 at half-pixel centres, edges repeated.  # (target, size)"""
    weights = torch.zeros(target, size, dtype=torch.float64)
    for i in range(target):
        place = (i + 0.5) * size / target - 0.5
        for j in range(int(place // 1) - 1, int(place // 1) + 3):
            d = abs(place - j)
            near, far = (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3
            weights[i, min(max(j, 0), size - 1)] += near if d <= 1 else far
    return weights


@pytest.mark.parametrize(("size", "target"), [(1, 4), (2, 5), (3, 16), (5, 6)])
def test_enlarging_is_bicubic_without_aligned_corners(size, target):
    f, weights = torch.randn(1, 2, size, size), cubic_weights(size, target)
    expected = (weights @ f.double() @ weights.T).float()
    torch.testing.assert_close(enlarge(f, target), expected, atol=1e-5, rtol=1e-5)


def test_maps_and_sequences_are_row_major_inverses():
    f = torch.randn(2, 5, 3, 3)
    sequence = to_sequence(f)
    assert torch.equal(sequence[1, 2 * 3 + 1], f[1, :, 2, 1])
    assert torch.equal(to_map(sequence, 3), f)
